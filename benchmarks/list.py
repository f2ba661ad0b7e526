"""`make list`: a line per paper, in under a second."""

from benchmarks import ledger


def state(slug: str) -> str:
    """What the ledger holds for a paper: `standin study 4✓ 1✗ 2○, ...`, the strongest profile on each data set."""
    found = []
    for result in ledger.strongest(ledger.heads_of(slug)):
        held, failed, left = ledger.counts(result)
        found.append(f"{result['dataset']} {result['profile']} {held}✓ {failed}✗ {left}○")
    return ", ".join(found) or "not run"


def main() -> None:
    rows = [("slug", "paper", "task", "modality", "claims: ✓ reproduced, ✗ not, ○ inconclusive")]
    for slug in ledger.slugs():
        paper = ledger.load_paper_head(slug)
        rows.append((slug, paper["name"], paper["task"], ", ".join(paper["modality"]), state(slug)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    main()

"""`make list`: a line per paper, in under a second."""

from benchmarks import ledger


def state(paper: dict) -> str:
    """What the ledger holds for a paper: `standin-cpu: 3/5 claims, ...`."""
    found = []
    for result in ledger.results_of(paper["slug"]):
        verdicts = list(ledger.verdicts_on_paper(paper, result).values())
        held = f"{verdicts.count('reproduced')}/{len(verdicts)} claims"
        found.append(f"{result['dataset']}-{result['profile']}: {held}")
    return ", ".join(found) or "not run"


def main() -> None:
    rows = [("slug", "paper", "task", "modality", "results (claims reproduced)")]
    for slug in ledger.slugs():
        paper = ledger.load_paper(slug)
        rows.append((slug, paper["name"], paper["task"], ", ".join(paper["modality"]), state(paper)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    main()

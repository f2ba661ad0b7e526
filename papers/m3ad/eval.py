"""Evaluate on the test questions, audit parameters and memory, draw the panel, ask about a user's own image.

python -m papers.m3ad.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.m3ad.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.m3ad.eval audit --out audit.csv
python -m papers.m3ad.eval apply --checkpoint RUN/checkpoint.pt --input film.png --question "..." --output answers.csv
python -m papers.m3ad.eval export --checkpoint RUN/checkpoint.pt --output task.pt
"""

from collections import Counter
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

# What metrics.csv has in every row; cells are empty where a row has no such value.
COLUMNS = (
    "accuracy_pct", "above_prior_points", "unseen_answer_pct", "masked_word_pct", "params_pct", "params_error_points",
    "fusion_pct", "memory_pct",
)  # fmt: skip
AT_ONCE = 64
AUDITED = ("head", "vision", "language", "cross", "gen", "full", "ft")
AUDIT_BATCH = 8  # of the memory at the run's own sizes
# "Params (%)" of Tables 1, 2 and 4.
PRINTED_SHARES = {
    "head": {"VQA-RAD": 0.90, "SLAKE-EN": 0.78, "MELINDA": 0.68},
    "gen": {"VQA-RAD": 3.96, "SLAKE-EN": 3.85, "MELINDA": 3.76},
    "full": {"VQA-RAD": 4.16, "SLAKE-EN": 4.04, "MELINDA": 3.95},
}


def load_model(checkpoint: Path, device):
    """The network of a checkpoint in evaluation mode, its configuration and its vocabulary.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.m3ad.model import load_task_state
    from papers.m3ad.train import Config, build_model
    from papers.m3ad.vocabulary import Vocabulary
    from shared.checkpoints import load_checkpoint, load_config

    content = load_checkpoint(checkpoint, "m3ad")
    config = load_config(content, Config, checkpoint)
    vocabulary = Vocabulary(folder=config.text_folder)
    vocabulary.load_state_dict(content["objects"]["vocabulary"])
    model = build_model(config, vocabulary)
    model.load_state_dict(content["models"][0])
    if config.stage == "tune" and config.select == "best" and content["objects"]["best"]["state"]:
        load_task_state(model, content["objects"]["best"]["state"])
    return model.to(device).eval(), config, vocabulary


def probabilities(model, dataset, device, at_once: int = AT_ONCE):
    """Scores (N, A) of all questions of a data set: the sigmoid of the logits."""
    import torch
    from torch.utils.data import default_collate

    from papers.m3ad.data import trim

    model.eval()
    scores = []
    with torch.no_grad():
        for first in range(0, len(dataset), at_once):
            batch = default_collate([dataset[k] for k in range(first, min(first + at_once, len(dataset)))])
            tokens = batch["tokens"][:, : trim(batch["tokens"])]
            scores.append(model(batch["image"].to(device), tokens.to(device)).float().sigmoid().cpu())
    return torch.cat(scores)


def accuracy_of(model, dataset, device) -> float:
    """Share of the questions whose answer has the highest score (M11); one that the list lacks counts as wrong."""
    best = probabilities(model, dataset, device).argmax(1)
    return (best == dataset.answers).double().mean().item()


def test_questions(data: Path, config, vocabulary):
    """The test questions of a data set as the run of a configuration sees them."""
    from papers.m3ad.data import Images, Questions, read_questions

    parts = read_questions(data, config.layout)
    images = Images([q.image for q in parts["test"]] if config.use_image else [], config.image_size)
    return Questions(parts["test"], images, vocabulary, config.text_length, use_image=config.use_image), parts


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row per test question, and rows of the audit.

    A question's row has `accuracy_pct`, 0 or 100, `above_prior_points`, that minus the 0 or 100 of the answer that
    `prior_answers` guesses, and `unseen_answer_pct`, 100 where no training question has its answer. The rows
    `audit VQA-RAD` and so on have the share of trained parameters at the paper's sizes, and `memory` the memory at
    the run's own. A backbone has a row per held-out caption instead: `masked_word_pct`, how many of its masked words
    are found.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from shared.files import write_csv
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config, vocabulary = load_model(checkpoint, where)
    if config.stage == "pretrain":
        rows = masked_words(data, model, config, vocabulary, where)
    else:
        dataset, parts = test_questions(data, config, vocabulary)
        right = probabilities(model, dataset, where).argmax(1) == dataset.answers
        seen = {question.answer for question in parts["train"]}
        guesses = prior_answers(parts["train"], dataset.questions)
        rows = [
            {
                "case": question.case,
                "accuracy_pct": 100.0 * bool(hit),
                "above_prior_points": 100.0 * bool(hit) - 100.0 * (guess == question.answer),
                "unseen_answer_pct": 100.0 * (question.answer not in seen),
            }
            for question, guess, hit in zip(dataset.questions, guesses, right)
        ]
        rows += audit_rows(config, model, len(vocabulary))

    write_csv(Path(out) / "metrics.csv", rows, ["case", *COLUMNS])


def prior_answers(training: list, questions: list) -> list[str]:
    """The most frequent answer to each question's words among training questions, or of all where its words are new.

    What a guess without image or training reaches; on equal counts the answer that came first in the data.
    """
    overall = Counter(question.answer for question in training)
    by_text: dict[str, Counter] = {}
    for question in training:
        by_text.setdefault(question.text.lower(), Counter())[question.answer] += 1
    return [by_text.get(question.text.lower(), overall).most_common(1)[0][0] for question in questions]


def masked_words(data: Path, model, config, vocabulary, device) -> list[dict]:
    """Rows of a backbone: each held-out caption's masked words, one at a time, out of the image and the other words.

    Released weights have no head for words; their row is empty of that column.
    """
    import torch

    from papers.m3ad.data import SPECIAL_TOKENS, Images, normalise, read_captions, split_captions, trim

    if config.text_folder is not None:
        return [{"case": "caption/none"}]
    _, captions = split_captions(read_captions(data, config.layout))
    images = Images([caption.image for caption in captions], config.image_size)
    tokens = torch.tensor([vocabulary.encode(caption.text, config.text_length) for caption in captions])
    generator = torch.Generator().manual_seed(0)
    special = (tokens[..., None] == torch.tensor(SPECIAL_TOKENS)).any(-1)
    # A word of each caption is masked, drawn at random: the same for every backbone of a data set.
    place = torch.rand(tokens.shape, generator=generator).masked_fill(special, -1).argmax(1)
    rows = torch.arange(len(tokens))
    truth = tokens[rows, place]
    hidden = tokens.clone()
    hidden[rows, place] = vocabulary.mask
    found = []
    with torch.no_grad():
        for some in rows.split(AT_ONCE):
            batch = torch.stack([normalise(images(captions[k].image)) for k in some.tolist()])
            length = trim(hidden[some])
            words, *_ = model(batch.to(device), hidden[some, :length].to(device))
            found.append(words[torch.arange(len(some)), place[some].to(device)].argmax(-1).cpu())
    hits = torch.cat(found) == truth
    return [{"case": caption.case, "masked_word_pct": 100.0 * bool(hit)} for caption, hit in zip(captions, hits)]


# --- audit -----------------------------------------------------------------------------------------------


def setting_of(config, paper_sizes: bool):
    """What a configuration trains; with `paper_sizes` at the paper's bottleneck and heads."""
    from papers.m3ad.audit import Setting

    setting = Setting(config.tuning, config.fusion, tuple(config.places), config.train_poolers)
    if paper_sizes:
        return setting
    return Setting(
        setting.tuning, setting.fusion, setting.places, setting.train_poolers, config.bottleneck, config.fusion_heads
    )


def audit_rows(config, model, vocabulary: int) -> list[dict]:
    """Shares of trained parameters at the paper's sizes, and memory at the sizes of this run, relative to
    full fine-tuning."""
    import torch

    from papers.m3ad.audit import PAPER_HEADS, at_paper_sizes, count
    from papers.m3ad.model import M3AD, M3AE, prepare_tuning
    from papers.m3ad.train import sizes_of

    rows = []
    for name, answers in PAPER_HEADS.items():
        found = at_paper_sizes(setting_of(config, paper_sizes=True), answers)
        row = {"case": f"audit {name}", "params_pct": found.share, "fusion_pct": found.fusion_share}
        printed = PRINTED_SHARES.get(config.variant, {}).get(name)
        if printed is not None:
            row["params_error_points"] = round(round(found.share, 2) - printed, 4)
        rows.append(row)
    setting = setting_of(config, paper_sizes=False)
    answers = model.head[-1].out_features
    measured = []
    for tuning in (setting.tuning, "full"):
        with torch.device("meta"):
            network = M3AD(M3AE(sizes_of(config, vocabulary)), answers)
            fusion = setting.fusion and tuning == "adapters"
            prepare_tuning(network, tuning, fusion, setting.places, setting.bottleneck, setting.fusion_heads,
                           setting.train_poolers)  # fmt: skip
        measured.append(count(network, AUDIT_BATCH, config.text_length).training_bytes)
    return [*rows, {"case": "memory", "memory_pct": 100 * measured[0] / measured[1]}]


def audit(out: Path | None = None, batch: int = 64) -> None:
    """Count parameters and memory of all settings at the paper's sizes, and print them beside the printed shares.

    Nothing is allocated: the model of 345 million parameters lives on the meta device. Memory is what a training
    step keeps for its backward pass, the gradients and AdamW's moments, in float32; weights are a column of their own.

    Args:
        out: a .csv file to write too.
        batch: images per update.
    """
    table = audit_table(batch)
    text = "\n".join(",".join(row) for row in table)
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if out is not None:
        from shared.files import write_atomically

        write_atomically(Path(out), lambda path: path.write_text(text + "\n", "utf-8"))


def audit_table(batch: int = 64, variants: tuple[str, ...] = AUDITED) -> list[list[str]]:
    """Rows of `audit`, the first with the names of the columns."""
    from papers.m3ad.audit import PAPER_HEADS, Setting, at_paper_sizes
    from papers.m3ad.train import VARIANTS

    full = at_paper_sizes(Setting("full"), PAPER_HEADS["VQA-RAD"], batch)
    columns = "setting, trained, VQA-RAD %, SLAKE-EN %, MELINDA %, printed, weights GiB, training GiB, memory %"
    table = [columns.split(", ")]
    for variant in variants:
        options = VARIANTS[variant]
        setting = Setting(options.get("tuning", "adapters"), options.get("fusion", True),
                          options.get("places", ("vision", "language", "cross")))  # fmt: skip
        found = at_paper_sizes(setting, PAPER_HEADS["VQA-RAD"], batch)
        shares = [f"{at_paper_sizes(setting, answers).share:.2f}" for answers in PAPER_HEADS.values()]
        printed = " ".join(f"{value:.2f}" for value in PRINTED_SHARES.get(variant, {}).values()) or "-"
        table.append([
            variant, str(found.trained), *shares, printed, f"{found.weights / 2**30:.2f}",
            f"{found.training_bytes / 2**30:.2f}", f"{100 * found.training_bytes / full.training_bytes:.2f}",
        ])  # fmt: skip
    return table


# --- pictures --------------------------------------------------------------------------------------------


def chosen_questions(questions, shown: int = 4, offset: int = 0) -> list[int]:
    """Numbers of questions about different images and with different texts, closed and open in turn."""
    chosen: list[int] = []
    for kind in (["open", "closed"] * shown)[:shown]:
        used = {questions[k].image for k in chosen}, {questions[k].text for k in chosen}
        fitting = [
            k for k, q in enumerate(questions)
            if q.image not in used[0] and q.text not in used[1] and q.case.startswith(kind)
        ]  # fmt: skip
        fitting = (
            fitting or [k for k, q in enumerate(questions) if q.image not in used[0]] or list(range(len(questions)))
        )
        chosen.append(fitting[(offset + 7 * len(chosen)) % len(fitting)])
    return chosen


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw test images with a question, the truth and each variant's answer, and accuracy against trainable share.

    Args:
        data: the data set.
        checkpoints: of tuned variants.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: another number shows other questions.
    """
    import textwrap

    from papers.m3ad.audit import count
    from papers.m3ad.data import read_image
    from shared.figures import pyplot, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    found = []
    questions = None
    for path in checkpoints:
        model, config, vocabulary = load_model(path, where)
        if config.stage == "pretrain":
            raise InputError(f"{path}: the panel shows answers: give checkpoints of tuned variants")
        dataset, _ = test_questions(data, config, vocabulary)
        questions = dataset.questions
        scores = probabilities(model, dataset, where)
        accuracy = 100 * (scores.argmax(1) == dataset.answers).double().mean().item()
        best = scores.max(1)
        found.append((config.variant, [vocabulary.answers[k] for k in best.indices.tolist()], best.values.tolist(),
                      accuracy, count(model).share))  # fmt: skip
    names = {"text_only": "text only", "head": "head", "gen": "M3AD-Gen", "full": "M3AD-Fus", "ft": "fine-tuning"}
    plt = pyplot()
    figure = plt.figure(figsize=(12.5, 4.4))
    grid = figure.add_gridspec(2, 5, width_ratios=[1, 1, 1, 1, 1.35], height_ratios=[1.25, 1])
    for column, number in enumerate(chosen_questions(questions, 4, case)):
        question = questions[number]
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(read_image(question.image, 256).transpose(1, 2, 0))
        axis.axis("off")
        text = "\n".join(textwrap.wrap(question.text, 26)[:3])
        axis.set_title(text, fontsize=9, wrap=True)
        below = figure.add_subplot(grid[1, column])
        below.axis("off")
        below.text(0.02, 0.98, f"truth: {textwrap.shorten(question.answer, 26)}", weight="bold", fontsize=9, va="top")
        for row, (variant, answers, scores, *_) in enumerate(found):
            right = answers[number] == question.answer
            line = f"{'✓' if right else '✗'} {names.get(variant, variant)}: {textwrap.shorten(answers[number], 18)}"
            colour = "#1a7f37" if right else "#c0392b"
            below.text(0.02, 0.80 - 0.145 * row, f"{line} ({scores[number]:.2f})", color=colour, fontsize=8.5, va="top")
    axis = figure.add_subplot(grid[:, 4])
    for variant, _, _, accuracy, share in found:
        hollow = variant == "text_only"
        colour, face = ("C3", "none") if hollow else ("C0", "C0")
        axis.plot(share, accuracy, "o", markersize=9, markerfacecolor=face, color=colour)
        axis.annotate(names.get(variant, variant), (share, accuracy), xytext=(0, -15 if hollow else 8),
                      textcoords="offset points", fontsize=9, ha="center")  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlim(min(f[4] for f in found) / 3, 300)
    low, high = min(f[3] for f in found), max(f[3] for f in found)
    axis.set_ylim(low - 6, high + 6)
    axis.set_xlabel("trained share of all parameters [%]")
    axis.set_ylabel(f"accuracy on {len(questions)} test questions [%]")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, out)


# --- the user's own image --------------------------------------------------------------------------------


def apply(
    checkpoint: Path, input: Path, output: Path, question: str, device: str = "auto", top: int = 5,
    figure: Path | None = None, task: Path | None = None,
) -> None:  # fmt: skip
    """Ask one question about one image; writes the best answers with their scores as a table.

    A score is the sigmoid of the answer's logit, between 0 and 1; scores of all answers don't sum to 1.

    Args:
        checkpoint: of a tuned variant.
        input: image file (.png, .jpg, ...).
        output: a .csv file with the columns rank, answer, score.
        question: the text.
        device: auto, cpu, cuda, ...
        top: number of answers.
        figure: a .png file, to draw where the answer's text attended to in the image.
        task: a file of `export`, whose adapters and head replace those of the checkpoint.
    """
    import torch

    from papers.m3ad.data import normalise, read_image
    from papers.m3ad.model import load_task_state
    from shared.checkpoints import fitting, load_tensors
    from shared.files import write_csv
    from shared.gpu import choose_device

    if not str(output).endswith(".csv"):
        raise InputError(f"{output}: the output is a table, its name must end in .csv")
    if not question.strip():
        raise InputError("the question is empty: give it as --question")
    where = choose_device(device)
    model, config, vocabulary = load_model(checkpoint, where)
    if config.stage == "pretrain":
        raise InputError(f"{checkpoint}: variant '{config.variant}' answers nothing; give a tuned one")
    if task is not None:
        content = load_tensors(task)
        with fitting(task):
            vocabulary.load_state_dict({**vocabulary.state_dict(), "answers": content["answers"]})
            model.head[-1] = torch.nn.Linear(model.head[-1].in_features, len(vocabulary.answers)).to(where)
            load_task_state(model, content["task"])
    image = normalise(read_image(Path(input), config.image_size))
    image = image if config.use_image else torch.zeros_like(image)
    tokens = torch.tensor([vocabulary.encode(question, config.text_length)])
    attention = model.backbone.text_layers[-1].cross_attention
    attention.record = figure is not None
    with torch.no_grad():
        scores = model(image[None].to(where), tokens.to(where))[0].float().sigmoid().cpu()
    best = scores.topk(min(top, len(scores)))

    found = [(vocabulary.answers[number], score) for score, number in zip(best.values.tolist(), best.indices.tolist())]
    rows = [{"rank": rank, "answer": answer, "score": f"{score:.4f}"} for rank, (answer, score) in enumerate(found, 1)]
    write_csv(Path(output), rows)
    for answer, score in found:
        print(f"{score:.3f}  {answer}")
    if figure is not None:
        draw_attention(input, attention.weights[0, :, 0].mean(0).cpu(), question, figure)


def draw_attention(image: Path, weights, question: str, out: Path) -> None:
    """The image with the attention (V,) that the text's first token pays to its patches; without the class token."""
    from papers.m3ad.data import read_image
    from shared.figures import pyplot, save_figure

    side = round((len(weights) - 1) ** 0.5)
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.4))
    picture = read_image(Path(image), 384).transpose(1, 2, 0)
    for axis in axes:
        axis.imshow(picture)
        axis.axis("off")
    axes[1].imshow(weights[1:].reshape(side, side), extent=(0, 384, 384, 0), alpha=0.5, cmap="inferno")
    figure.suptitle(question, fontsize=10)
    figure.tight_layout()
    save_figure(figure, out)


def export(checkpoint: Path, output: Path) -> None:
    """Write what a task adds to the backbone, a few percent of the checkpoint, for `apply --task`.

    Args:
        checkpoint: of a tuned variant.
        output: a .pt file with the tensors, the answers and the configuration.
    """
    from papers.m3ad.model import task_state
    from shared.checkpoints import save_tensors
    from shared.cli import config_to_dict

    model, config, vocabulary = load_model(checkpoint, "cpu")
    if config.stage == "pretrain":
        raise InputError(f"{checkpoint}: variant '{config.variant}' is a backbone without a task; give a tuned one")
    state = task_state(model)
    content = {"paper": "m3ad", "config": config_to_dict(config), "answers": vocabulary.answers, "task": state}
    save_tensors(Path(output), content)
    size = sum(value.numel() for value in state.values())
    print(f"wrote {output}: {size:,} numbers of {sum(p.numel() for p in model.parameters()):,}")


def main(argv: list[str] | None = None) -> None:
    functions = (evaluate, panel, audit, apply, export)
    commands({function.__name__: function for function in functions}, argv)


if __name__ == "__main__":
    main()

"""Evaluate on the test questions, audit parameters and memory, draw the panel, ask about a user's own image.

python -m papers.m3ad.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.m3ad.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.m3ad.eval audit --out audit.csv
python -m papers.m3ad.eval apply --checkpoint RUN/checkpoint.pt --input film.png --question "..." --output answers.csv
python -m papers.m3ad.eval export --checkpoint RUN/checkpoint.pt --output task.pt
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

# What metrics.csv has in every row; cells are empty where a row has no such value.
COLUMNS = (
    "accuracy_pct", "unseen_answer_pct", "masked_word_pct", "params_pct", "params_error_points", "fusion_pct",
    "memory_pct",
)  # fmt: skip


def load_run(checkpoint: Path, device):
    """What a checkpoint holds, ready to answer, with its configuration and its vocabulary.

    Returns:
        a network in evaluation mode; of variant `lookup` the `QuestionLookup`, of `forest` None.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit this version of its code.
    """
    from papers.m3ad.answering import Best, QuestionLookup
    from papers.m3ad.model import load_task_state
    from papers.m3ad.network import build_model
    from papers.m3ad.train import Config
    from papers.m3ad.vocabulary import Vocabulary
    from shared.checkpoints import fitting, load_all_weights, load_checkpoint, load_config, refuse_nan

    content = load_checkpoint(checkpoint, "m3ad")
    config = load_config(content, Config, checkpoint)
    vocabulary = Vocabulary(folder=config.text_folder)
    with fitting(checkpoint):
        vocabulary.load_state_dict(content["objects"]["vocabulary"])
        if config.stage == "lookup":
            lookup = QuestionLookup()
            lookup.load_state_dict(content["objects"]["lookup"])
            return lookup, config, vocabulary
        if config.stage == "forest":
            return None, config, vocabulary
        model = build_model(config, vocabulary)
    load_all_weights([model], content["models"], checkpoint)
    if config.stage == "tune" and config.select == "best":
        best = Best()
        with fitting(checkpoint):
            best.load_state_dict(content["objects"]["best"])
            refuse_nan([best.weights], checkpoint)
            if best.weights:
                load_task_state(model, best.weights)
    return model.to(device).eval(), config, vocabulary


def load_tuned(checkpoint: Path, device):
    """As `load_run`, of a variant that is tuned for a task.

    Raises:
        InputError: it is another one.
    """
    model, config, vocabulary = load_run(checkpoint, device)
    if config.stage != "tune":
        raise InputError(f"{checkpoint}: variant '{config.variant}' is not tuned for a task; give one that is")
    return model, config, vocabulary


def asked_in_test(questions: list, config, vocabulary):
    """The test questions as the run of a configuration sees them."""
    from papers.m3ad.samples import Images, Questions

    images = Images([q.image for q in questions] if config.use_image else [], config.image_size)
    return Questions(questions, images, vocabulary, config.text_length, use_image=config.use_image)


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row per test question, and rows of the audit.

    A question's row has `accuracy_pct`, 0 or 100, and `unseen_answer_pct`, 100 where no training question has its
    answer. The rows `audit VQA-RAD` and so on have the share of trained parameters at the paper's sizes, and `memory`
    the memory at the run's own. A backbone has a row per held-out caption instead: `masked_word_pct`, whether its
    masked word is found.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.m3ad.answering import forest_answers, probabilities
    from papers.m3ad.audit import audit_rows
    from papers.m3ad.data import read_questions
    from papers.m3ad.masked_words import masked_words
    from papers.m3ad.network import sizes_of
    from shared.files import write_csv
    from shared.gpu import choose_device

    where = choose_device(device)
    found, config, vocabulary = load_run(checkpoint, where)
    if config.stage == "pretrain":
        rows = masked_words(data, found, config, vocabulary, where)
    else:
        parts = read_questions(data, config.layout)
        questions, more = parts["test"], []
        if config.stage == "lookup":
            right = [found(question.text) == question.answer for question in questions]
        elif config.stage == "forest":
            answers = forest_answers(parts["train"], questions, config.seed)
            right = [answer == question.answer for answer, question in zip(answers, questions)]
        else:
            dataset = asked_in_test(questions, config, vocabulary)
            right = (probabilities(found, dataset, where).argmax(1) == dataset.answers).tolist()
            more = audit_rows(config, sizes_of(config, len(vocabulary)), len(vocabulary.answers))
        seen = {question.answer for question in parts["train"]}
        rows = [
            {"case": q.case, "accuracy_pct": 100.0 * hit, "unseen_answer_pct": 100.0 * (q.answer not in seen)}
            for q, hit in zip(questions, right)
        ] + more
    write_csv(Path(out) / "metrics.csv", rows, ["case", *COLUMNS])


def audit(out: Path | None = None, batch: int = 64) -> None:
    """Count parameters and memory of all settings at the paper's sizes, and print them beside the printed shares.

    Nothing is allocated: the model of 345 million parameters lives on the meta device. Memory is what a training
    step keeps for its backward pass, the gradients and AdamW's moments, in float32; weights are a column of their own.

    Args:
        out: a .csv file to write too.
        batch: images per update.
    """
    from papers.m3ad.audit import audit_table
    from shared.files import write_csv

    table = audit_table(batch)
    lines = [list(table[0]), *(list(row.values()) for row in table)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    if out is not None:
        write_csv(Path(out), table)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw test images with a question, the truth and each variant's answer, and accuracy against trainable share.

    Args:
        data: the data set.
        checkpoints: of tuned variants.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: another number shows other questions.
    """
    from papers.m3ad.answering import probabilities
    from papers.m3ad.audit import count
    from papers.m3ad.data import read_questions
    from papers.m3ad.pictures import Answered, draw_answers
    from shared.gpu import choose_device

    where = choose_device(device)
    found, questions = [], None
    for path in checkpoints:
        model, config, vocabulary = load_tuned(path, where)
        questions = questions or read_questions(data, config.layout)["test"]
        dataset = asked_in_test(questions, config, vocabulary)
        scores, numbers = probabilities(model, dataset, where).max(1)
        accuracy = 100 * (numbers == dataset.answers).double().mean().item()
        answers = [vocabulary.answers[number] for number in numbers.tolist()]
        found.append(Answered(config.variant, answers, scores.tolist(), accuracy, count(model).share))
    draw_answers(questions, found, case, Path(out))


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

    from papers.m3ad.pictures import draw_attention
    from papers.m3ad.samples import normalise, read_image
    from papers.m3ad.task_files import swap_task
    from shared.files import refuse_overwriting_inputs, write_csv
    from shared.finite import finite
    from shared.gpu import choose_device

    if not str(output).endswith(".csv"):
        raise InputError(f"{output}: the output is a table, its name must end in .csv")
    if figure is not None and Path(figure).resolve() == Path(output).resolve():
        raise InputError(f"{figure}: is both --output and --figure; give two names")
    if not question.strip():
        raise InputError("the question is empty: give it as --question")
    if top < 1:
        raise InputError(f"--top {top}: expected at least 1")
    for path in (output, figure):
        if path is not None:
            refuse_overwriting_inputs(path, input, checkpoint, task)
    where = choose_device(device)
    model, config, vocabulary = load_tuned(checkpoint, where)
    if figure is not None and not config.use_image:
        raise InputError(f"{checkpoint}: variant '{config.variant}' sees no image to look at; leave out --figure")
    if task is not None:
        swap_task(model, vocabulary, task, where)
    image = normalise(read_image(Path(input), config.image_size))
    image = image if config.use_image else torch.zeros_like(image)
    tokens = torch.tensor([vocabulary.encode(question, config.text_length)])
    attention = model.backbone.text_layers[-1].cross_attention
    attention.record = figure is not None
    with torch.no_grad():
        logits = model(image[None].to(where), tokens.to(where))[0].float().cpu()
    best = finite(logits, f"the scores of the answers for {input}").sigmoid().topk(min(top, len(logits)))

    found = [(vocabulary.answers[number], score) for score, number in zip(best.values.tolist(), best.indices.tolist())]
    if figure is not None:
        draw_attention(Path(input), attention.weights[0, :, 0].mean(0).cpu(), question, Path(figure))
    rows = [{"rank": rank, "answer": answer, "score": f"{score:.4f}"} for rank, (answer, score) in enumerate(found, 1)]
    write_csv(Path(output), rows)
    for answer, score in found:
        print(f"{score:.3f}  {answer}")


def export(checkpoint: Path, output: Path) -> None:
    """Write what a task adds to the backbone, a few percent of the checkpoint, for `apply --task`.

    Args:
        checkpoint: of a tuned variant.
        output: a .pt file with the tensors, the answers, the configuration and a digest of the backbone.
    """
    from papers.m3ad.task_files import write_task

    model, config, vocabulary = load_tuned(checkpoint, "cpu")
    size = write_task(Path(output), model, config, vocabulary)
    print(f"wrote {output}: {size:,} numbers of {sum(p.numel() for p in model.parameters()):,}")


def main(argv: list[str] | None = None) -> None:
    functions = (evaluate, panel, audit, apply, export)
    commands({function.__name__: function for function in functions}, argv)


if __name__ == "__main__":
    main()

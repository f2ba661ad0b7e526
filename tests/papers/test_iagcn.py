"""IA-GCN: the attention, its losses, the learned and the fixed graph, selection without leakage, the table's reader."""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from papers.iagcn import data, preparation, scores
from papers.iagcn.chebyshev import ChebyshevConvolution, ChebyshevGCN, population_graph, scaled_laplacian
from papers.iagcn.controls import Forest, LinearClassifier, fit_control, fit_forest, select_by_ridge
from papers.iagcn.folds import FoldNetworks
from papers.iagcn.model import (
    IAGCN,
    FeatureAttention,
    GraphConvolution,
    GraphLearning,
    edges_of_new_subjects,
    interpretability_loss,
    mask_entropy,
    mask_size,
)
from shared.errors import InputError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- attention and losses --------------------------------------------------------------------------------


def test_attention_is_one_mask_for_all_subjects():
    attention = FeatureAttention(3)
    with torch.no_grad():
        attention.mask.copy_(torch.tensor([-40.0, 0.0, 40.0]))
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, -6.0, 5.0]])
    assert torch.allclose(attention(x), torch.tensor([[0.0, 1.0, 3.0], [0.0, -3.0, 5.0]]), atol=1e-6)
    start = FeatureAttention(20000, start=1.0, scatter=0.5).mask
    assert float(start.detach().mean()) == pytest.approx(1.0, abs=0.02) and float(
        start.detach().std()
    ) == pytest.approx(0.5, abs=0.02)


def test_mask_losses_on_known_values():
    assert mask_entropy(torch.tensor([0.5])).item() == pytest.approx(0.5)
    assert mask_entropy(torch.tensor([0.25, 0.5])).item() == pytest.approx(0.5 + 0.5)
    assert mask_entropy(torch.tensor([0.0, 1.0])).item() == pytest.approx(0.0, abs=1e-7)
    largest = mask_entropy(torch.tensor([[1 / math.e], [0.3], [0.45]]))
    assert largest.argmax() == 0 and largest[0].item() == pytest.approx(1 / (math.e * math.log(2)))
    assert mask_size(torch.tensor([[0.2, 0.3], [1.0, 1.0]])).tolist() == pytest.approx([0.5, 2.0])


def test_entropy_pushes_large_attention_up_and_small_down():
    weights = torch.tensor([0.2, 0.6], requires_grad=True)
    mask_entropy(weights).backward()
    assert weights.grad[0] > 0 > weights.grad[1]


def test_loss_in_both_forms():
    weights, cross_entropy = torch.tensor([[0.25, 0.5]]), torch.tensor([2.0])
    masks = 0.1 * 1.0 + 0.2 * 0.75
    table = interpretability_loss(cross_entropy, weights, 0.6, 0.1, 0.2)
    printed = interpretability_loss(cross_entropy, weights, 0.6, 0.1, 0.2, form="printed")
    assert table.item() == pytest.approx(0.6 * 2 + 0.4 * masks)
    assert printed.item() == pytest.approx(0.4 * 2 + 0.6 * masks)
    assert printed.item() == pytest.approx(interpretability_loss(cross_entropy, weights, 0.4, 0.1, 0.2).item())


def test_mask_losses_reach_only_the_mask():
    network = IAGCN(5, 3)
    interpretability_loss(network(torch.randn(7, 5)).sum() * 0, network.attention.weights, 0.0, 1.0, 1.0).backward()
    assert network.attention.mask.grad.abs().min() > 0
    others = [p for name, p in network.named_parameters() if name != "attention.mask"]
    assert all(p.grad is None or not p.grad.any() for p in others)


# --- the learned graph -----------------------------------------------------------------------------------


def test_graph_follows_its_formula():
    learning = GraphLearning(4, threshold=-0.7)
    with torch.no_grad():
        learning.log_temperature.fill_(0.3)
    x = torch.randn(6, 4)
    learning.calibrate(x)
    graph, embedded = learning(x).detach(), learning.embed(x)
    for i in range(6):
        for j in range(6):
            distance = (embedded[i] - embedded[j]).norm().item()
            expected = 1 / (1 + math.exp(math.exp(0.3) * distance - 0.7))
            assert float(graph[i, j]) == pytest.approx(expected, abs=1e-3)
    assert torch.equal(graph, graph.T)


def test_calibration_centres_and_scales():
    learning, x = GraphLearning(4), 100 * torch.randn(50, 4)
    learning.calibrate(x)
    embedded = learning.embed(x)
    assert embedded.mean(0).abs().max() < 1e-5 and float(embedded.norm(dim=1).mean()) == pytest.approx(1.0, abs=1e-5)
    constant = torch.ones(5, 4)
    learning.calibrate(constant)  # no spread: no division by zero
    assert learning(constant).isfinite().all()


def test_equal_subjects_have_a_finite_gradient():
    learning = GraphLearning(4)
    with torch.no_grad():
        learning.mlp[2].weight.zero_()
        learning.mlp[2].bias.zero_()  # a distance of exactly 0, where the root has an infinite slope
    learning(torch.ones(5, 4)).sum().backward()
    assert all(p.grad.isfinite().all() for p in learning.parameters())


def test_graph_sees_all_features_and_classifier_the_attended():
    network = IAGCN(4, 3)
    x, changed = torch.randn(9, 4), None
    with torch.no_grad():
        network.attention.mask[2] = -50.0
        changed = x.clone()
        changed[:, 2] += torch.randn(9)
        assert torch.allclose(network.attention(x)[:, 2], torch.zeros(9))
        assert not torch.allclose(network(x), network(changed)), "the graph must see features without attention"
        alone = torch.eye(9)
        assert torch.allclose(network(x, alone), network(changed, alone), atol=1e-6)


def test_convolution_is_a_weighted_mean():
    convolution, x = GraphConvolution(3, 2), torch.randn(4, 3)
    graph = torch.rand(4, 4)
    projected = x @ convolution.project.weight.T + convolution.project.bias
    for i in range(4):
        mean = sum(graph[i, j] * projected[j] for j in range(4)) / sum(graph[i, j] for j in range(4))
        assert torch.allclose(convolution(x, graph)[i], mean, atol=1e-6)


def test_layer_sizes_of_the_paper():
    network = IAGCN(354, 3)
    sizes = [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]
    assert sizes == [(16, 354), (8, 16), (32, 354), (16, 32), (3, 16)]
    dgm = IAGCN(354, 3, attention=False)
    count = [sum(p.numel() for p in n.parameters()) for n in (network, dgm)]
    assert count[0] - count[1] == 354


def test_new_subjects_change_nothing_and_do_not_see_each_other():
    network, known = IAGCN(5, 3).eval(), torch.randn(12, 5)
    new = torch.randn(3, 5)
    with torch.no_grad():
        network.graph_learning.calibrate(known)
        together = network(torch.cat([known, new]), edges_of_new_subjects(12, 3))
        assert torch.allclose(together[:12], network(known), atol=1e-6)
        for k in range(3):
            alone = network(torch.cat([known, new[k : k + 1]]), edges_of_new_subjects(12, 1))
            assert torch.allclose(together[12 + k], alone[12], atol=1e-6)
        twin = network(torch.cat([known, known[:1]]), edges_of_new_subjects(12, 1))
        graph = network.graph_learning(known)
        rest = graph[0].sum()
        assert rest > 0 and twin[12].isfinite().all()


# --- one network per fold --------------------------------------------------------------------------------


def test_stacked_networks_are_the_single_ones():
    networks, x = [IAGCN(6, 3) for _ in range(3)], torch.randn(3, 8, 6)
    stacked = FoldNetworks(networks)
    folds = torch.tensor([2, 0])
    found = stacked(folds, x[folds])
    for k, fold in enumerate(folds.tolist()):
        assert torch.allclose(found[k], networks[fold](x[fold]), atol=1e-6)
        assert torch.allclose(stacked.network(fold)(x[fold]), networks[fold](x[fold]), atol=1e-6)
    found[0].sum().backward()
    gradient = stacked.weights["head/weight"].grad
    assert gradient[2].any() and not gradient[0].any() and not gradient[1].any()


# --- baselines -------------------------------------------------------------------------------------------


def test_chebyshev_against_explicit_polynomials():
    affinity = torch.rand(6, 6)
    laplacian = scaled_laplacian((affinity + affinity.T) * (1 - torch.eye(6)))
    assert torch.linalg.eigvalsh(laplacian).abs().max() <= 1 + 1e-5
    x, identity = torch.randn(6, 4), torch.eye(6)
    for order in range(4):
        convolution = ChebyshevConvolution(4, 2, order)
        polynomials = [identity, laplacian]
        polynomials.append(2 * laplacian @ laplacian - identity)
        polynomials.append(4 * laplacian @ laplacian @ laplacian - 3 * laplacian)
        weights = convolution.project.weight.reshape(order + 1, 2, 4)
        expected = sum(polynomials[k] @ x @ weights[k].T for k in range(order + 1)) + convolution.bias
        assert torch.allclose(convolution(x, laplacian), expected, atol=1e-5)
    assert ChebyshevGCN(4, 3)(x, laplacian).shape == (6, 3)


def test_population_graph_counts_agreements():
    x = torch.randn(4, 10)
    x[1] = 2 * x[0] + 1  # correlation 1
    age, sex = torch.tensor([70.0, 71.5, 80.0, float("nan")]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    graph = population_graph(x, age, sex)
    assert float(graph[0, 1]) == pytest.approx(2.0, abs=1e-5)
    similarity = population_graph(x)
    assert float(graph[0, 2]) == pytest.approx(float(similarity[0, 2]))  # same sex, other age
    assert float(graph[0, 3]) == 0 and not graph.diagonal().any()


def labelled(classes: int = 3, n: int = 90, features: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Features of which the columns 3 and 7 decide the class, but for noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, features)).astype(np.float32)
    limits = [-0.7, 0.7] if classes == 3 else [0.4]
    return x, np.digitize(x[:, 3] - x[:, 7] + 0.5 * rng.normal(size=n), limits)


@pytest.mark.parametrize("classes", [2, 3])
def test_fitted_controls_say_what_scikit_learn_says(classes):
    x, label = labelled(classes)
    network = Forest(30, 12, classes)
    forest = fit_forest(x, label, 30, 12, 0)
    network.set(forest)
    with torch.no_grad():
        found = network(torch.from_numpy(x)).softmax(1).numpy()
        assert np.allclose(found, forest.predict_proba(x), atol=1e-5)
        assert max(tree.get_depth() for tree in forest.estimators_) > 3

        from sklearn.linear_model import LogisticRegression

        theirs, linear = LogisticRegression(max_iter=1000).fit(x, label), LinearClassifier(25, classes)
        linear.set(theirs.coef_, theirs.intercept_)
        assert np.allclose(linear(torch.from_numpy(x)).softmax(1).numpy(), theirs.predict_proba(x), atol=1e-5)


def test_controls_learn_what_is_there_and_nothing_from_noise():
    x, label = labelled(2, n=200)
    new, truth = x[100:], label[100:]
    for method in ("ridge", "logistic"):
        network = LinearClassifier(25, 2)
        fit_control(method, network, x[:100], label[:100], 0)
        assert (network(torch.from_numpy(new)).argmax(1).numpy() == truth).mean() > 0.8, method
    assert {3, 7} <= set(select_by_ridge(x, label, 4)) and select_by_ridge(x, label, 4) == sorted(
        select_by_ridge(x, label, 4)
    )
    noise = np.random.default_rng(1).integers(0, 4, 60) == 0
    network = LinearClassifier(25, 2)
    fit_control("ridge", network, x[:60], noise.astype(int), 0)
    assert network(torch.from_numpy(new)).argmax(1).sum() == 0, "a large penalty is right, and says the larger class"
    fit_control("majority", network, x[:60], np.array([0] * 20 + [1] * 40), 0)
    assert np.allclose(LinearClassifier.forward(network, torch.zeros(1, 25)).softmax(1), [[1 / 3, 2 / 3]], atol=1e-5)


def test_scores_agree_with_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 60)
    probability = rng.dirichlet(np.ones(3), 60).round(1) + 0.02 * np.eye(3)[label]
    probability /= probability.sum(1, keepdims=True)
    prediction = probability.argmax(1)
    assert scores.accuracy(label, probability) == pytest.approx(100 * accuracy_score(label, prediction))
    assert scores.macro_f1(label, probability) == pytest.approx(100 * f1_score(label, prediction, average="macro"))
    assert scores.auc(label, probability) == pytest.approx(
        100 * roc_auc_score(label, probability, multi_class="ovr", average="macro")
    )
    assert math.isnan(scores.auc(np.zeros(4, int), np.full((4, 2), 0.5)))


def test_attention_scores_of_the_top_features():
    attention, names = np.array([0.1, 0.9, 0.2, 0.8, 0.0]), list("abcde")
    assert scores.attention_of_top(attention, 2) == (pytest.approx(0.85), pytest.approx(0.1))
    assert math.isnan(scores.attention_of_top(attention, 5)[1])
    assert scores.hits(attention, names, ("b", "c"), 2) == 1 and scores.hits(attention, names, ("b", "d"), 2) == 2


# --- the table -------------------------------------------------------------------------------------------


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def tadpole(folder: Path, *rows: str, header="RID,VISCODE,DX_bl,DX,AGE,PTGENDER,MMSE,CDRSB,Other") -> Path:
    write(folder / data.TADPOLE, "\n".join([header, *rows]) + "\n")
    return folder


ROWS = (
    "1,bl,CN,NL,70,Male,29,0,x", "2,bl,SMC,,71,Female,30,0,y", "2,m12,SMC,MCI,71,Female,20,9,y",
    "3,bl,LMCI,MCI,72,Male,,1.5,", "4,bl,EMCI,NL to MCI,73,Female,27,<2,", "5,bl,AD,Dementia,74,Male,22,>4.5,",
    "6,bl,AD,MCI to Dementia,75,Female,21,5,", "7,bl,,,76,Male,25,1,",
)  # fmt: skip


def test_tadpole_rows_labels_and_cells(tmp_path):
    table = data.read_table(tadpole(tmp_path, *ROWS))
    assert table.rid == ["1", "2", "3", "4", "5", "6"], "baseline visits with a diagnosis"
    assert table.label.tolist() == [0, 0, 1, 1, 2, 2]
    assert table.features == ["AGE", "PTGENDER", "MMSE", "CDRSB"]
    assert table.modalities == ["demographics", "demographics", "cognitive", "cognitive"]
    assert np.isnan(table.x[2, 2]) and table.x[3, 3] == 2 and table.x[4, 3] == 4.5 and table.x[0, 1] == 1
    without = data.read_table(tmp_path, exclude=("cognitive",))
    assert without.features == ["AGE", "PTGENDER"] and without.digest == table.digest
    write(tmp_path / "groups.csv", "feature,modality\nMMSE,test\nAGE,who\n")
    assert data.read_table(tmp_path).modalities == ["who", "test"]


def test_general_layout(tmp_path):
    write(tmp_path / "features.csv", "RID,a,b\ns1,1,2\ns2,3,4\ns3,5,\ns4,7,8\ns5,9,9\n")
    write(tmp_path / "labels.csv", "RID,DX\ns1,10\ns2,9\ns3,10\ns4,9\n")
    table = data.read_table(tmp_path)
    assert table.classes == ("9", "10") and table.label.tolist() == [1, 0, 1, 0] and table.features == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("8,bl,AD,Dementia,74,Male,inf,5,", "subject 8"),
        ("8,bl,AD,Dementia,74,Male,1e300,5,", "subject 8.*1E300"),
        (",bl,AD,Dementia,74,Male,22,5,", "row 8 has no RID"),
        ("8,bl,AD,Dementia,74,Male,many,5,", "MMSE"),
        ("8,bl,AD,Dementia,74,Male", "line 10"),
        ("8,bl,AD,Unknown,74,Male,22,5,", "UNKNOWN"),
        ("1,bl,AD,Dementia,74,Male,22,5,", "subjects.*'1'"),
    ],
)
def test_broken_tables_are_named(tmp_path, row, expected):
    with pytest.raises(InputError, match=expected) as error:
        data.read_table(tadpole(tmp_path, *ROWS, row))
    assert data.TADPOLE in str(error.value)


def test_other_mistakes_with_a_table(tmp_path):
    folder = tadpole(tmp_path / "d", *ROWS)
    with pytest.raises(InputError, match="PET"):
        data.read_table(folder, exclude=("PET",))
    with pytest.raises(InputError, match="too few for 3 folds"):
        preparation.assign_folds(data.read_table(folder), 3)
    write(folder / "folds.csv", "RID,fold\n1,0\n2,1\n3,0\n4,1\n5,0\n6,1\n")
    assert preparation.assign_folds(data.read_table(folder), 2).tolist() == [0, 1, 0, 1, 0, 1]
    with pytest.raises(InputError, match="folds 0 to 2"):
        preparation.assign_folds(data.read_table(folder), 3)


def test_folds_are_stratified_and_whole(smoke_data):
    table = data.read_table(smoke_data("iagcn"))
    fold = preparation.assign_folds(table, 5)
    counts = np.array([[np.sum((fold == k) & (table.label == c)) for c in range(3)] for k in range(5)])
    assert (counts.max(0) - counts.min(0)).max() <= 1 and counts.sum() == len(table.rid)
    sizes = counts.sum(1)
    assert sizes.max() - sizes.min() <= 1


def test_preparation_uses_training_subjects_only():
    x = np.array([[1.0, np.nan], [3.0, np.nan], [100.0, 7.0]])
    table = data.Table(
        Path("t"), list("abc"), x, np.array([0, 1, 0]), ["f", "g"], ["m", "m"], ("n", "p"), x[:, 0], x[:, 0], None
    )
    prepared = preparation.Preparation(table, 1)
    prepared.fit(x[:2], 0)
    found = prepared.inputs(x, 0)
    assert torch.allclose(found[:, 0], torch.tensor([-1.0, 1.0, 98.0]))
    assert found[:2, 1].tolist() == [0, 0], "a missing value is the mean"


# --- training --------------------------------------------------------------------------------------------


def test_labels_of_test_subjects_play_no_part(smoke_data, tmp_path):
    """Shuffle the labels of one fold's test subjects: that fold's network, inputs and selection stay as they were."""
    from shared.checkpoints import load_checkpoint
    from tests.smoke import train_variant

    original = smoke_data("iagcn")
    table = data.read_table(original)
    fold = preparation.assign_folds(table, 2)
    changed = tmp_path / "changed"
    shutil.copytree(original, changed)
    for folder in (changed, tmp_path / "same"):
        if folder != changed:
            shutil.copytree(original, folder)
        rows = "\n".join(f"{rid},{k}" for rid, k in zip(table.rid, fold))
        write(folder / "folds.csv", f"RID,fold\n{rows}\n")
    with (changed / data.TADPOLE).open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    tested = {rid for rid, k in zip(table.rid, fold) if k == 0}
    turn = {"NL": "MCI", "MCI": "Dementia", "Dementia": "NL"}
    for line in lines:
        if line["RID"] in tested:
            line["DX"] = turn[line["DX"]]
    with (changed / data.TADPOLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    for variant in ("dgm", "full"):
        found = []
        for folder in (tmp_path / "same", changed):
            train_variant("iagcn", variant, folder, tmp_path / variant / folder.name)
            content = load_checkpoint(tmp_path / variant / folder.name / "checkpoint.pt")
            found.append((content["models"][0], content["objects"]["preparation"]["columns"]))
        (a, columns_a), (b, columns_b) = found
        assert torch.equal(columns_a[0], columns_b[0])
        assert all(torch.equal(a[name][0], b[name][0]) for name in a)
        assert any(not torch.equal(a[name][1], b[name][1]) for name in a), "the other fold did learn from them"


def test_top_features_come_from_the_folds_own_attention(smoke_data, smoke_run, tmp_path):
    from papers.iagcn.preparation import top_by_attention
    from shared.checkpoints import load_checkpoint
    from tests.smoke import smoke_config

    folder = smoke_data("iagcn")
    config = smoke_config("iagcn", "dgm_top", folder, tmp_path, init=smoke_run("iagcn") / "checkpoint.pt")
    top = top_by_attention(config, data.read_table(folder))
    mask = load_checkpoint(config.init)["models"][0]["weights.attention/mask"]
    for fold in range(2):
        assert set(top[fold].tolist()) == set(mask[fold].topk(4).indices.tolist())
    config.init = smoke_run("iagcn", "dgm") / "checkpoint.pt"
    with pytest.raises(InputError, match="no attention"):
        top_by_attention(config, data.read_table(folder))
    config.init = smoke_run("iagcn", "full_nocog") / "checkpoint.pt"
    with pytest.raises(InputError, match="other subjects, features"):
        top_by_attention(config, data.read_table(folder))


def test_expected_features_are_counted_by_the_mean_attention_over_the_folds(smoke_data, smoke_run, tmp_path):
    from papers.iagcn.eval import evaluate
    from shared.checkpoints import load_checkpoint, save_checkpoint

    content = load_checkpoint(smoke_run("iagcn") / "checkpoint.pt")
    names = content["objects"]["preparation"]["features"]
    mask = torch.full_like(content["models"][0]["weights.attention/mask"], -9.0)
    for fold, weights in enumerate(((3.0, 3.0, -1.0, -1.0), (-1.0, -1.0, 3.0, 3.0))):  # each fold sees two of the four
        for name, weight in zip(("CDRSB", "CDRSB_bl", "MMSE", "MMSE_bl"), weights):
            mask[fold, names.index(name)] = weight
        others = [k for k, name in enumerate(names) if name not in ("CDRSB", "CDRSB_bl", "MMSE", "MMSE_bl")]
        mask[fold, others[2 * fold : 2 * fold + 2]] = 0.0
    content["models"][0]["weights.attention/mask"] = mask
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    evaluate(smoke_data("iagcn"), tmp_path / "checkpoint.pt", tmp_path, device="cpu")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(newline="")))
    assert [row["hits"] for row in rows] == ["4", "4"], "0.61 of the mean is more than 0.25"
    top = (2 * torch.tensor(3.0).sigmoid() + 2 * torch.tensor(0.0).sigmoid()) / 4
    assert float(rows[0]["avg4"]) == pytest.approx(float(top), abs=1e-5), "the fold's own four"


def test_decay_of_the_graph_reaches_its_embedding_alone():
    from papers.iagcn.train import Config, parameter_groups

    model = FoldNetworks([IAGCN(6, 3), IAGCN(6, 3)])
    config = Config(Path("d"), Path("o"), weight_decay=0.1, graph_decay=0.2)
    decay = {id(p): group.get("weight_decay", 0) for group in parameter_groups(config, model) for p in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.weights.items()}
    for name, value in found.items():
        expected = 0.2 if name.startswith("graph_learning/mlp") else 0.1
        assert value == (0 if name.split("/")[-1] in ("mask", "log_temperature", "threshold") else expected), name


def test_apply_does_not_depend_on_company_or_column_order(smoke_data, smoke_run, tmp_path):
    from papers.iagcn.eval import apply

    folder, checkpoint = smoke_data("iagcn"), smoke_run("iagcn") / "checkpoint.pt"
    apply(checkpoint, folder, folder / "new_subjects.csv", tmp_path / "all.csv", device="cpu")
    header, rows = read_rows(folder / "new_subjects.csv")
    order = list(reversed(range(len(header))))
    text = "\n".join(",".join(row[k] for k in order) for row in (header, rows[2]))
    apply(checkpoint, folder, write(tmp_path / "one_in.csv", text + "\n"), tmp_path / "one.csv", device="cpu")
    together, alone = (list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("all", "one"))
    assert len(together) == len(rows) and together[2]["RID"] == alone[0]["RID"]
    for key in list(alone[0])[2:]:
        assert float(alone[0][key]) == pytest.approx(float(together[2][key]), abs=2e-6)
    assert sum(float(alone[0][key]) for key in list(alone[0])[2:]) == pytest.approx(1, abs=1e-5)
    importances = list(csv.DictReader((tmp_path / "all_importances.csv").open()))
    values = [float(row["attention"]) for row in importances]
    assert values == sorted(values, reverse=True) and len(values) == len(data.read_table(folder).features)
    absurd = [rows[0][:], rows[1]]
    absurd[0][header.index("MMSE")] = "1e300"
    text = "\n".join(",".join(row) for row in (header, *absurd))
    with pytest.raises(InputError, match="absurd.csv: column MMSE of subject"):
        apply(checkpoint, folder, write(tmp_path / "absurd.csv", text), tmp_path / "absurd_out.csv", device="cpu")
    few = write(tmp_path / "few.csv", f"RID,MMSE\n{rows[0][0]},28\n")
    with pytest.raises(InputError, match="few.csv.*--impute-missing"):
        apply(checkpoint, folder, few, tmp_path / "few_out.csv", device="cpu")
    apply(checkpoint, folder, few, tmp_path / "few_out.csv", impute_missing=True, device="cpu")
    assert (tmp_path / "few_out.csv").exists()


def test_standin_has_the_papers_size_and_its_diagnosis_follows_the_protocol(tmp_path):
    from benchmarks.standins.dementia_table import DEMENTIA, NORMAL, diagnose, enrol
    from benchmarks.standins.iagcn import generate

    folder = generate(tmp_path / "data", size="paper")
    table = data.read_table(folder)
    assert table.x.shape == (564, 354) and np.bincount(table.label).tolist() == [160, 320, 84]
    assert table.modalities.count("MRI") == 314
    names = {name: table.x[:, k] for k, name in enumerate(table.features)}
    assert np.array_equal(names["CDRSB"], names["CDRSB_bl"]) and np.array_equal(names["MMSE"], names["MMSE_bl"])
    rng = np.random.default_rng(0)
    boxes, mmse = np.zeros((2, 6)), np.array([30, 30])
    boxes[1, :5] = 2
    assert diagnose(rng, boxes, np.array([30, 15])).tolist() == [NORMAL, DEMENTIA]
    assert diagnose(rng, boxes, mmse)[1] != DEMENTIA, "MMSE above 27 is no dementia"
    _, scores_, _, label = enrol(rng, (20, 20, 20))
    assert scores_["MMSE"][label == DEMENTIA].min() >= 20 and scores_["MMSE"][label == NORMAL].min() >= 24

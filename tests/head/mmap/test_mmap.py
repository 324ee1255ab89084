from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmap_st.data.targets import Targets
from mmap_st.errors import HeadError
from mmap_st.head.basis import fit_components
from mmap_st.head.interface import Shape, best_of, parse_settings, plan_validation
from mmap_st.head.mmap.features import slide_features
from mmap_st.head.mmap.fitting import MMAP, MmapSettings, fit_mmap, load_mmap
from mmap_st.head.mmap.training import SlideTensors, TrainingSettings, TrainingSlide, train_epochs
from mmap_st.head.networks.attention import MmapNetwork, contrastive_similarity, masked_mse
from mmap_st.head.scoring.metrics import mean_pcc, pearson_per_gene

FAST = MmapSettings(width=32, heads=4, epochs=6, learning_rate=3e-3, members=2, device="cpu")


def silent(text: str) -> None:
    pass


def network(**changes) -> MmapNetwork:
    torch.manual_seed(0)
    options = {"width": 8, "heads": 2, "dropout": 0.0, "input_dropout": 0.0, "prototypes": True}
    made = MmapNetwork(3, 5, 4, **{**options, **changes})
    return made.eval()


def inputs(n: int = 7, k: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    selected = torch.zeros(n, k, dtype=torch.bool)
    for i in range(n):
        selected[i, torch.randperm(k)[:3]] = True
    return torch.randn(n, 3, 5), torch.randn(k, 3, 5), selected


def plain_reference(net: MmapNetwork, x, centre, selected) -> torch.Tensor:
    """The six steps, spot by spot and prototype by prototype, as design and paper say them."""

    def attend(block, query, tokens):
        width, heads = query.shape[-1], block.heads
        q = block.query(block.norm_query(query)).view(heads, width // heads)
        key, value = block.key_value(block.norm_key(tokens)).chunk(2, dim=-1)
        out = []
        for h in range(heads):
            part = slice(h * width // heads, (h + 1) * width // heads)
            scores = torch.softmax(key[:, part] @ q[h] / (width // heads) ** 0.5, dim=0)
            out.append(scores @ value[:, part])
        return block.out(torch.cat(out))

    def local(one):
        tokens = torch.stack([net.project[m](one[m]) for m in range(3)])
        return tokens[0] + attend(net.local_attention, tokens[0], tokens)

    rows = []
    for i in range(len(x)):
        z = local(x[i])
        around = [z] + [local(centre[k]) for k in range(len(centre)) if selected[i, k]]
        g = z + attend(net.global_attention, z, torch.stack(around))
        rows.append((net.local_out(z) + net.global_out(g)) / 2)
    return torch.stack(rows)


def test_candidates_projected_once_a_slide_give_what_the_plain_reference_gives() -> None:
    net, (x, centre, selected) = network(), inputs()
    with torch.inference_mode():
        fast, _, _ = net(x, centre, selected)
        torch.testing.assert_close(fast, plain_reference(net, x, centre, selected), atol=1e-5, rtol=1e-4)


def test_candidates_that_are_not_selected_take_no_part() -> None:
    net, (x, centre, selected) = network(), inputs()
    changed = centre.clone()
    unused = ~selected[0]
    changed[unused] = 100 * torch.randn(int(unused.sum()), 3, 5)
    before, after = net(x, centre, selected)[0], net(x, changed, selected)[0]
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before, after)


def test_a_spot_with_no_prototype_at_all_attends_to_itself() -> None:
    net, (x, centre, selected) = network(), inputs()
    selected[0] = False
    assert torch.isfinite(net(x, centre, selected)[0]).all()


def test_one_magnification_no_prototypes_and_learned_ones_are_the_same_module() -> None:
    x, centre, selected = inputs()
    single = MmapNetwork(1, 5, 4, width=8, heads=2, dropout=0.0, input_dropout=0.0, prototypes=True).eval()
    assert single.local_attention is None
    assert single(x[:, :1], centre[:, :1], selected)[0].shape == (7, 4)
    without = network(prototypes=False)
    out, z, g = without(x, None, None)
    torch.testing.assert_close(out, without.local_out(z))
    assert g is z
    learned = network(learned_prototypes=9)
    assert learned(x, None, None)[0].shape == (7, 4)
    assert learned.learned.requires_grad


def test_the_loss_leaves_undefined_targets_out() -> None:
    predicted = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    target = torch.tensor([[0.0, float("nan")], [float("nan"), 2.0]])
    loss = masked_mse(predicted, target)
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert predicted.grad.tolist() == [[1.0, 0.0], [0.0, 2.0]]
    assert masked_mse(predicted, torch.full((2, 2), float("nan"))).item() == 0


def test_contrastive_similarity_by_hand() -> None:
    z, g = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # own pairs: 1 and 0.8; others: g0.z1 = 0, g1.z0 = 0.6, above the margin by 0.4
    expected = (0 + 0.2) / 2 + (0.4**2) / 2
    assert contrastive_similarity(z, g, 0.2).item() == pytest.approx(expected)
    assert contrastive_similarity(z[:1], g[:1], 0.2).item() == pytest.approx(0.0)
    torch.testing.assert_close(contrastive_similarity(3 * z, 5 * g, 0.2), contrastive_similarity(z, g, 0.2))


def pcc(fitted, slide) -> float:
    return mean_pcc(pearson_per_gene(fitted.predict(slide), slide.targets.dense()))


@pytest.mark.parametrize("kind", ["kmeans", "none", "learned"])
def test_it_learns_what_there_is_to_learn(head_slides, kind: str) -> None:
    *train, test = head_slides(slides=5, noise=0.1)
    settings = replace(FAST, prototypes=kind)
    fitted = fit_mmap(train, plan_validation(train, []), settings, 0, silent)
    assert pcc(fitted, test) > 0.8
    assert 0 <= fitted.chosen["epochs"] <= settings.epochs
    assert [row["epoch"] for row in fitted.history] == list(range(settings.epochs + 1))
    assert {"epoch", "training_loss", "validation_mse", "validation_pcc"} == fitted.history[0].keys()


def test_it_uses_the_slides_context_where_only_that_tells(head_slides) -> None:
    """Each slide's level follows how its spots are distributed, which no single spot shows."""
    rng = np.random.default_rng(0)
    slides = []
    for base in head_slides(slides=14, spots=80, magnifications=1, width=6, genes=2):
        skew = rng.uniform(0.1, 0.9)
        kind = rng.random(80) < skew
        embedding = rng.normal(0, 0.3, (80, 1, 6)).astype(np.float32)
        embedding[:, 0, 0] += np.where(kind, 2.0, -2.0)
        target = np.full((80, 2), 4 * skew, np.float32) + rng.normal(0, 0.05, (80, 2)).astype(np.float32)
        count = 16
        from mmap_st.prototypes.candidates import CandidateSettings, build_candidates, select_prototypes

        candidates = build_candidates(embedding, np.ones(80, np.bool_), CandidateSettings())
        slides.append(
            replace(
                base,
                embedding=embedding,
                target=Targets.of_dense(target),
                centre=candidates.centre,
                selected=select_prototypes(embedding, candidates.centre, count),
            )
        )
    train, test = slides[:11], slides[11:]
    fitted = fit_mmap(train, plan_validation(train, []), replace(FAST, epochs=2), 0, silent)
    error = np.mean([((fitted.predict(s) - s.targets.dense()) ** 2).mean() for s in test])
    level = np.concatenate([s.targets.dense() for s in train]).mean()
    nothing = np.mean([((level - s.targets.dense()) ** 2).mean() for s in test])
    assert fitted.level is not None
    assert error < 0.5 * nothing


def test_the_same_seed_gives_the_same_head_and_leaves_torchs_generator_alone(head_slides) -> None:
    *train, val = curved(head_slides(slides=3, spots=150, width=6))
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    settings = replace(FAST, epochs=8, learning_rate=1e-2, dropout=0.0, input_dropout=0.0)
    validation = plan_validation(train, [val])
    first, second = (fit_mmap(train, validation, settings, 5, silent) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    for name, value in first.tensors().items():
        assert np.array_equal(value, second.tensors()[name]), name
    other = fit_mmap(train, validation, settings, 6, silent)
    np.testing.assert_array_equal(first.weight, other.weight)  # ridge has no seed
    name = "network.0.local_out.weight"
    assert not np.array_equal(first.tensors()[name], other.tensors()[name])


def curved(slides):
    """Slides whose targets follow products of embeddings, which no linear probe can tell."""
    made = []
    for slide in slides:
        x = slide.embedding
        target = 2.0 * np.tanh(x[:, 0, :5] * x[:, 0, 1:6]) + x[:, 1, :5]
        made.append(replace(slide, target=Targets.of_dense(target.astype(np.float32))))
    return made


def test_learned_attention_explains_what_ridge_cannot(head_slides) -> None:
    *train, val, test = curved(head_slides(slides=5, spots=300, width=6))
    settings = replace(FAST, width=64, epochs=20, learning_rate=1e-2, dropout=0.0, input_dropout=0.0)
    validation = plan_validation(train, [val])  # one trial: quicker than folds
    fitted = fit_mmap(train, validation, settings, 0, silent)
    alone = fit_mmap(train, validation, replace(settings, blend=0.0), 0, silent)
    assert fitted.chosen["epochs"] > 5
    assert alone.networks == []
    assert pcc(fitted, test) > pcc(alone, test) + 0.05


def test_validation_slides_choose_and_are_not_fitted(head_slides) -> None:
    train, val = curved(head_slides(slides=4, spots=150)), curved(head_slides(slides=1, seed=9, spots=150))
    fitted = fit_mmap(train, plan_validation(train, val), replace(FAST, epochs=15), 0, silent)
    assert fitted.chosen["epochs"] == best_of(fitted.history)["epoch"]
    changed = [replace(val[0], target=Targets.of_dense(val[0].targets.dense() + 100.0))]
    other = fit_mmap(train, plan_validation(train, changed), replace(FAST, epochs=15), 0, silent)
    np.testing.assert_array_equal(fitted.mean, other.mean)
    if fitted.chosen == other.chosen:
        np.testing.assert_array_equal(fitted.predict(val[0]), other.predict(val[0]))


def test_it_is_saved_and_loaded(head_slides) -> None:
    *train, test = head_slides(slides=3)
    settings = replace(FAST, epochs=2)
    fitted = fit_mmap(train, plan_validation(train, []), settings, 0, silent)
    loaded = load_mmap(fitted.tensors(), settings, Shape(2, 12, 5))
    np.testing.assert_array_equal(fitted.predict(test), loaded.predict(test))
    with pytest.raises(HeadError, match="do not fit"):
        load_mmap(fitted.tensors(), replace(settings, width=64), Shape(2, 12, 5))


def test_missing_genes_and_spots_do_not_disturb_training(head_slides, lacking) -> None:
    *train, test = head_slides(slides=4, noise=0.1)
    train[0] = lacking(train[0], genes=(2,))
    train[1] = lacking(train[1], spots=(0, 1, 2, 3, 4))
    train[2].valid[3] = False
    train[2].embedding[3] = np.nan
    fitted = fit_mmap(train, plan_validation(train, []), FAST, 0, silent)
    assert np.isfinite(fitted.predict(test)).all()
    assert pcc(fitted, test) > 0.7
    assert np.isnan(fitted.predict(train[2])[3]).all()


def test_one_slide_validates_on_spatial_blocks(head_slides) -> None:
    (slide,) = head_slides(slides=1, spots=90)
    validation = plan_validation([slide], [])
    assert validation.rule == "spatial blocks of the one slide"
    assert len(validation.folds) == 3
    for (fitted_on,), (judged_on,) in validation.folds:
        assert not set(fitted_on.ids) & set(judged_on.ids)
        assert len(fitted_on) + len(judged_on) == 90
    fit_mmap([slide], validation, replace(FAST, epochs=2), 0, silent)


def test_an_epoch_covers_the_spots_and_the_caller_can_stop(head_slides) -> None:
    slides = head_slides(slides=2)
    components = fit_components(slides, 8)
    train = [
        TrainingSlide(
            SlideTensors.of(features, np.arange(60), features.blocks(), "cpu"),
            torch.from_numpy(s.targets.dense()),
            np.arange(60),
        )
        for s in slides
        for features in [slide_features(s, components)]
    ]
    made = MmapNetwork(4, 8, 5, width=8, heads=2, dropout=0.1, input_dropout=0.1, prototypes=True)
    settings = TrainingSettings(1e-3, 0.0, 5, 2, 16, 4, 0.1, 0.2)
    seen = [epoch for epoch, _ in train_epochs(made, train, settings, 0)]
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("pair", "part"),
    [
        ("prototypes=many", "one of kmeans, none, random, learned"),
        ("heads=3", "not a multiple"),
        ("dropout=1", "below 1"),
        ("epochs=0", "greater than 0"),
        ("alpha=0", "greater than 0"),
        ("blend=2", "from 0 to 1"),
        ("widht=8", "did you mean width"),
        ("width=1.5", "is not a whole number"),
    ],
)
def test_settings_are_checked(pair: str, part: str) -> None:
    with pytest.raises(HeadError, match=part):
        parse_settings(MMAP, [pair])


def test_cosine_and_the_functional_form_agree() -> None:
    a, b = torch.randn(4, 8), torch.randn(4, 8)
    own = (1 - F.cosine_similarity(a, b)).mean()
    loss = contrastive_similarity(a, b, margin=1.0)  # no pair is above a margin of 1
    torch.testing.assert_close(loss, own)

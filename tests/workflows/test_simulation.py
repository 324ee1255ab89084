import hashlib
from pathlib import Path

import numpy as np

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.data.targets import targets_from_counts
from mmap_st.workflows.simulation import SimulationSettings, simulate_cohort
from mmap_st.workflows.simulation.expression import draw_effects, spot_context, within_section
from mmap_st.workflows.simulation.tissue import grow_tissue

SMALL = SimulationSettings(patients=2, size_um=1200.0, genes_per_kind=5)


def digests(root: Path, pattern: str) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob(pattern))
        if p.is_file()
    }


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate_cohort(tmp_path / name, SMALL, seed)
    first = digests(tmp_path / "a", "*")
    assert len(first) == 6
    assert first == digests(tmp_path / "b", "*")
    assert not set(first.values()) & set(digests(tmp_path / "c", "*").values())


def test_sections_are_the_same_whichever_process_makes_them(tmp_path: Path) -> None:
    names: list[str] = []
    simulate_cohort(tmp_path / "one", SMALL, 1)
    simulate_cohort(tmp_path / "two", SMALL, 1, names.append, processes=2)
    assert names == ["A1", "B1"]
    assert digests(tmp_path / "one", "*") == digests(tmp_path / "two", "*")


def test_the_coarse_switch_changes_its_effects_only() -> None:
    both = [
        draw_effects(np.random.default_rng(1), 5, coarse=coarse, slide_factor=True)
        for coarse in (True, False)
    ]
    assert not both[1].coarse.any()
    assert (both[0].coarse != 0).sum() == 5
    for name in ("names", "base", "fine", "level", "state"):
        assert np.array_equal(getattr(both[0], name), getattr(both[1], name)), name


def test_without_coarse_effects_the_ring_tells_little_of_the_spot() -> None:
    ticks = np.arange(300.0, 2200.0, 200.0)
    xy = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    told = {}
    for coarse in (True, False):
        contexts = [
            spot_context(grow_tissue(np.random.default_rng(seed), 2400.0, 0.5, coarse=coarse), xy)
            for seed in range(3)
        ]
        told[coarse] = np.mean([np.corrcoef(c.composition[:, 2], c.ring)[0, 1] for c in contexts])
    assert told[True] > 0.4
    assert abs(told[False]) < 0.25


def test_without_the_slide_factor_sections_do_not_differ(tmp_path: Path) -> None:
    spread = {}
    for factor in (True, False):
        root = tmp_path / str(factor)
        settings = SimulationSettings(patients=4, size_um=1200.0, genes_per_kind=8, slide_factor=factor)
        simulate_cohort(root, settings, 1)
        levels = []
        for slide in open_cohort(f"her2st:{root}").slides:
            counts = read_counts(slide)
            genes = [gene for gene in counts.genes if gene.startswith("GLOBAL")]
            levels.append(targets_from_counts(counts, genes).dense().mean(axis=0))
        spread[factor] = np.std(levels, axis=0).mean()
    assert spread[True] > 2 * spread[False]


def test_a_context_within_its_section_has_the_means_of_an_average_section() -> None:
    ticks = np.arange(300.0, 900.0, 200.0)
    xy = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    context = spot_context(grow_tissue(np.random.default_rng(0), 1200.0, 0.3), xy)
    within = within_section(context)
    np.testing.assert_allclose(within.composition.mean(axis=0), 0.25)
    np.testing.assert_allclose(within.ring.mean(), 0.35)
    np.testing.assert_allclose(np.diff(within.composition, axis=0), np.diff(context.composition, axis=0))


def test_the_written_layout_reads_back_with_its_scale(simulated: Path) -> None:
    cohort = open_cohort(f"her2st:{simulated}")
    assert [s.patient for s in cohort.slides] == ["A", "B", "C", "D", "E"]
    for slide in cohort.slides:
        spots = read_spots(slide)
        estimate = mpp_from_pitch(spots)
        assert estimate is not None
        assert 0.67 < estimate.mpp < 0.73
        assert len(spots) > 20
        assert read_counts(slide).library.min() > 0

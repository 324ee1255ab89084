import hashlib
from pathlib import Path

import numpy as np

from mmap_st.data.normalise import targets
from mmap_st.data.pitch import mpp_from_pitch
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.data.simulate import SimulationSettings, simulate_cohort

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


def test_the_coarse_switch_changes_its_genes_only_and_never_the_picture(tmp_path: Path) -> None:
    simulate_cohort(tmp_path / "all", SMALL, 1)
    simulate_cohort(tmp_path / "off", SimulationSettings(**{**vars(SMALL), "coarse": False}), 1)
    assert digests(tmp_path / "all", "*.jpg") == digests(tmp_path / "off", "*.jpg")
    tables = {name: read_counts(open_cohort(f"her2st:{tmp_path / name}")["A1"]) for name in ("all", "off")}
    both = [tables[name].matrix.toarray() for name in ("all", "off")]
    changed = (both[0] != both[1]).mean(axis=0)
    names = np.array(tables["all"].genes)
    is_coarse = np.char.startswith(names, "COARSE")
    assert changed[is_coarse].min() > 0.5
    assert changed[~is_coarse].max() < changed[is_coarse].min()


def test_without_the_slide_factor_sections_differ_less(tmp_path: Path) -> None:
    spread = {}
    for factor in (True, False):
        root = tmp_path / str(factor)
        settings = SimulationSettings(patients=4, size_um=1200.0, genes_per_kind=8, slide_factor=factor)
        simulate_cohort(root, settings, 1, pictures=False)
        assert not (root / "ST-imgs").exists()
        levels = []
        for slide in open_cohort(f"her2st:{root}").slides:
            counts = read_counts(slide)
            genes = [gene for gene in counts.genes if gene.startswith("GLOBAL")]
            levels.append(targets(counts, genes).mean(axis=0))
        spread[factor] = np.std(levels, axis=0).mean()
    assert spread[True] > 2 * spread[False]


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

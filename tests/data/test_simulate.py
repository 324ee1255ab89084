import hashlib
from pathlib import Path

import numpy as np

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


def test_switches_change_their_genes_only_and_never_the_picture(tmp_path: Path) -> None:
    simulate_cohort(tmp_path / "all", SMALL, 1)
    simulate_cohort(tmp_path / "off", SimulationSettings(**{**vars(SMALL), "slide_factor": False}), 1)
    assert digests(tmp_path / "all", "*.jpg") == digests(tmp_path / "off", "*.jpg")
    tables = {name: read_counts(open_cohort(f"her2st:{tmp_path / name}")["A1"]) for name in ("all", "off")}
    both = [tables[name].matrix.toarray() for name in ("all", "off")]
    changed = (both[0] != both[1]).mean(axis=0)
    names = np.array(tables["all"].genes)
    is_global = np.char.startswith(names, "GLOBAL")
    assert changed[is_global].min() > 0.5
    assert changed[~is_global].max() < changed[is_global].min()


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

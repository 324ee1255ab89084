"""One way to read or embed the windows of a slide, timed: run by `extract.py`, in any environment.

`PYTHON contestants.py NAME JOB.json` does what the job says and prints one line of JSON. Time begins before
the slide is opened and ends with the last window; imports and one small round to warm up come before.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch


def main() -> None:
    """Run one contestant."""
    name, job = sys.argv[1], SimpleNamespace(**json.loads(Path(sys.argv[2]).read_text()))
    torch.set_num_threads(job.torch_threads)
    register_architectures()
    run = CONTESTANTS[name]
    xy = np.load(job.xy)
    if job.warm_up:
        run(job, xy[: job.warm_up])
    result = run(job, xy)
    print(json.dumps({"windows": len(xy) * len(job.mpps), **result}))


# What all share -------------------------------------------------------------------------------------------


def register_architectures() -> None:
    """Name the networks of large pathology encoders for timm; only their speed matters here."""
    import timm
    from timm.layers import SwiGLUPacked

    def bench_uni(pretrained: bool = False, **kwargs):  # type: ignore[no-untyped-def]
        return timm.create_model("vit_large_patch16_224", init_values=1e-5, **kwargs)

    def bench_uni2_h(pretrained: bool = False, **kwargs):  # type: ignore[no-untyped-def]
        return timm.create_model(
            "vit_giant_patch14_224", img_size=224, depth=24, num_heads=24, init_values=1e-5, embed_dim=1536,
            mlp_ratio=2.66667 * 2, no_embed_class=True, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU,
            reg_tokens=8, **kwargs,
        )  # fmt: skip

    def bench_h_optimus(pretrained: bool = False, **kwargs):  # type: ignore[no-untyped-def]
        return timm.create_model(
            "vit_giant_patch14_reg4_dinov2", img_size=224, init_values=1e-5, global_pool="token", **kwargs
        )

    for function in (bench_uni, bench_uni2_h, bench_h_optimus):
        function.__module__ = __name__
        timm.models.register_model(function)


def model_of(job: SimpleNamespace) -> torch.nn.Module:
    """The network of `embed` jobs, the same for all."""
    import timm

    model = timm.create_model(job.arch, pretrained=False, num_classes=0, **job.arch_kwargs)
    if job.weights:
        from safetensors.torch import load_file

        model.load_state_dict({k: v.float() for k, v in load_file(job.weights).items()})
    return model.eval().to(job.device)


class Embedder:
    """Takes batches of normalised windows; embeds them where the job asks for it, and counts its time."""

    def __init__(self, job: SimpleNamespace) -> None:
        self._job = job
        self._model = model_of(job) if job.embed else None
        self.seconds = 0.0
        self.windows = 0

    def __call__(self, images: torch.Tensor) -> None:
        self.windows += len(images)
        if self._model is None:
            return
        began = time.perf_counter()
        dtype = torch.bfloat16 if self._job.precision == "bf16" else torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self._job.device, dtype, enabled=self._job.precision == "bf16"),
        ):
            self._model(images.to(self._job.device)).float().cpu()
        self.seconds += time.perf_counter() - began


def normalised(pixels: torch.Tensor, job: SimpleNamespace) -> torch.Tensor:
    """(b, 3, px, px) uint8 as float32, normalised."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (job.mean, job.std))
    return (pixels.float() / 255 - mean) / std


# The plain way --------------------------------------------------------------------------------------------


class PlainWindows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One OpenSlide read and one Pillow resize a window, from a level `finer` times as fine at least."""

    def __init__(self, job: SimpleNamespace, xy: np.ndarray, finer: float) -> None:
        self._job, self._finer = job, finer
        self._wanted = [(x, y, mpp) for mpp in job.mpps for x, y in xy.tolist()]
        self._slide = None

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, index: int) -> torch.Tensor:
        import openslide
        from PIL import Image

        if self._slide is None:
            self._slide = openslide.OpenSlide(self._job.slide)
        x, y, mpp = self._wanted[index]
        shrink, px = mpp / self._job.mpp, self._job.input_px
        level = self._slide.get_best_level_for_downsample(max(shrink / self._finer, 1.0) + 1e-6)
        side = round(px * shrink / self._slide.level_downsamples[level])
        corner = round(x - px * shrink / 2), round(y - px * shrink / 2)
        region = self._slide.read_region(corner, level, (side, side)).convert("RGB")
        if side != px:
            region = region.resize((px, px), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(region)).permute(2, 0, 1)
        return normalised(pixels[None], self._job)[0]


def plain(job: SimpleNamespace, xy: np.ndarray, finer: float = 1.0) -> dict:
    """A DataLoader over single windows, each from the coarsest level that is fine enough."""
    embed = Embedder(job)
    began = time.perf_counter()
    loader = torch.utils.data.DataLoader(
        PlainWindows(job, xy, finer), batch_size=job.batch, num_workers=job.workers
    )
    for images in loader:
        embed(images)
    assert embed.windows == len(xy) * len(job.mpps)
    seconds = time.perf_counter() - began
    packages = {name: version(name) for name in ("openslide-python", "pillow", "torch")}
    return {"seconds": seconds, "forward_s": embed.seconds, "versions": packages}


def plain_level_0(job: SimpleNamespace, xy: np.ndarray) -> dict:
    """The same from level 0, whose pixels mmap's windows are made of."""
    return plain(job, xy, finer=1e9)


# mmap -----------------------------------------------------------------------------------------------------


def mmap(job: SimpleNamespace, xy: np.ndarray) -> dict:
    """Read with this project's reader alone, or do all that `mmap extract` does."""
    return _mmap_embed(job, xy) if job.embed else _mmap_read(job, xy)


def _mmap_read(job: SimpleNamespace, xy: np.ndarray) -> dict:
    from collections import deque
    from concurrent.futures import ThreadPoolExecutor

    from mmap_st.extract.slides.slide import open_slide
    from mmap_st.extract.windows.read_plan import plan_reading
    from mmap_st.extract.windows.reader import WindowReader

    embed = Embedder(job)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (job.mean, job.std))
    began = time.perf_counter()
    slide = open_slide(Path(job.slide))
    wanted = {mpp: np.arange(len(xy)) for mpp in job.mpps}
    plan = plan_reading(slide.levels, xy, job.mpp, job.input_px, wanted, job.batch)
    planned = time.perf_counter() - began
    reader = WindowReader(slide, plan, job.cache_mb << 20)

    def read(step: int) -> torch.Tensor:
        pixels = torch.from_numpy(reader.read(step).pixels).permute(0, 3, 1, 2)
        # As the others do it in their loader processes; in a run this is the device's work.
        return pixels.float().div_(255.0).sub_(mean).div_(std)

    with ThreadPoolExecutor(job.workers) as pool:
        waiting: deque = deque()
        for step in range(len(plan)):
            waiting.append(pool.submit(read, step))
            if len(waiting) > job.workers + 2:
                embed(waiting.popleft().result())
        while waiting:
            embed(waiting.popleft().result())
    assert embed.windows == len(xy) * len(job.mpps)
    return {
        "seconds": time.perf_counter() - began,
        "planning_s": planned,
        "decode_amplification": reader.decoded / plan.blocks,
        "tiles": len(plan.tiles),
        "versions": {"mmap-st": version("mmap-st")},
    }


def forward(job: SimpleNamespace, xy: np.ndarray) -> dict:
    """The forward pass alone: as many windows as there would be, all the same, on the device's queue."""
    from mmap_st.extract.encoders import build_encoder
    from mmap_st.extract.engine.device import DeviceQueue, keep_freed_memory

    keep_freed_memory()
    encoder = build_encoder(
        spec_of(job), weights=Path(job.weights) if job.weights else None, random_weights=not job.weights,
        device=job.device, precision=job.precision, batch_size=job.batch, compiled=job.compiled,
    )  # fmt: skip
    device = DeviceQueue(encoder)
    windows = device.allocate((job.batch, job.input_px, job.input_px, 3))
    windows[:] = np.random.default_rng(0).integers(0, 256, windows.shape, np.uint8)
    count = len(xy) * len(job.mpps)
    began = time.perf_counter()
    for _ in range(0, count, job.batch):
        device.put(windows, None)
        while device.full:
            device.take()
    while len(device):
        device.take()
    rounded = -(-count // job.batch) * job.batch
    share = count / rounded
    seconds = (time.perf_counter() - began) * share
    return {"seconds": seconds, "forward_s": device.busy_s * share, "versions": {"torch": version("torch")}}


def spec_of(job: SimpleNamespace):  # type: ignore[no-untyped-def]
    """The job's network as this project's encoder."""
    from mmap_st.extract.encoders.spec import EncoderSpec, Pooling, Preprocessing, TimmModel

    return EncoderSpec(
        name=job.arch, model=TimmModel(job.arch, job.arch_kwargs), input_px=job.input_px,
        preprocessing=Preprocessing(tuple(job.mean), tuple(job.std)), pooling=Pooling("cls"),
    )  # fmt: skip


def _mmap_embed(job: SimpleNamespace, xy: np.ndarray) -> dict:
    import shutil
    import tempfile

    from mmap_st.data.cohort import Cohort, CohortSlide
    from mmap_st.extract.engine.device import keep_freed_memory
    from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
    from mmap_st.extract.engine.planning.options import ExtractOptions

    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(dir=Path(job.xy).parent))
    lines = ["id,pixel_x,pixel_y", *(f"s{i},{x},{y}" for i, (x, y) in enumerate(xy.tolist()))]
    (folder / "spots.csv").write_text("\n".join(lines))
    row = CohortSlide(
        "slide",
        image=Path(job.slide),
        spots=folder / "spots.csv",
        reader="table",
        mpp=job.mpp,
        mpp_from="cohort",
    )
    request = EncoderRequest(
        spec_of(job),
        weights=Path(job.weights) if job.weights else None,
        random_weights=not job.weights,
        device=job.device,
        precision=job.precision,
        compiled=job.compiled,
    )
    options = ExtractOptions(job.batch if job.device != "cpu" else None, job.workers, cache_mb=job.cache_mb)
    report = extract_cohort(Cohort((row,), "benchmark"), folder / "f.zarr", request, job.mpps, options)
    shutil.rmtree(folder)
    if report.failed:
        raise SystemExit(str(report.failed))
    figures = report.telemetry.summary()
    return {"seconds": figures["seconds"], "forward_s": figures["device_s"], "telemetry": figures}


# Peers ----------------------------------------------------------------------------------------------------


def lazyslide(job: SimpleNamespace, xy: np.ndarray) -> dict:
    """LazySlide: tiles around the spots at each magnification, and its own loop of feature extraction."""
    import geopandas as gpd
    import lazyslide as zs
    from lazyslide.preprocess._tiles import _add_tiles
    from shapely import box
    from torchvision.transforms import v2
    from wsidata import TileSpec, open_wsi

    embed = Embedder(job)
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(job.mean, job.std)]
    )

    def model(images: torch.Tensor) -> torch.Tensor:
        embed(images)
        return torch.zeros(len(images), 1)

    began = time.perf_counter()
    wsi = open_wsi(job.slide, store=None)
    for number, mpp in enumerate(job.mpps):
        half = job.input_px * mpp / job.mpp / 2
        shapes = [box(x - half, y - half, x + half, y + half) for x, y in xy]
        spec = TileSpec.from_wsidata(wsi, job.input_px, mpp=mpp, slide_mpp=job.mpp)
        tiles = gpd.GeoDataFrame({"tile_id": range(len(xy)), "tissue_id": 0}, geometry=shapes)
        _add_tiles(wsi, tiles, spec, key_added=f"tiles{number}")
        zs.tl.feature_extraction(
            wsi, model, model_name="m", tile_key=f"tiles{number}", transform=transform, device=job.device,
            batch_size=job.batch, num_workers=job.workers, pbar=False, amp=False,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    assert embed.windows == len(xy) * len(job.mpps)
    packages = {name: version(name) for name in ("lazyslide", "wsidata", "torch")}
    return {
        "seconds": seconds,
        "forward_s": embed.seconds,
        "reader": type(wsi.reader).__name__,
        "versions": packages,
    }


def slide2vec(job: SimpleNamespace, xy: np.ndarray) -> dict:
    """slide2vec on hs2p: its own collator and blocks of tiles; spots are on a regular grid."""
    import openslide
    from slide2vec.data.dataset import TileIndexDataset
    from slide2vec.data.tile_reader import OnTheFlyBatchTileCollator

    embed = Embedder(job)
    began = time.perf_counter()
    with openslide.OpenSlide(job.slide) as slide:
        downsamples = [float(d) for d in slide.level_downsamples]
    blocks = 0
    for mpp in job.mpps:
        shrink = mpp / job.mpp
        level = max(i for i, d in enumerate(downsamples) if d <= shrink * 1.001)
        lv0, read = round(job.input_px * shrink), round(job.input_px * shrink / downsamples[level])
        corner = np.round(xy - lv0 / 2).astype(np.int64)
        step = int(np.diff(np.unique(corner[:, 0])).min())
        tiling = SimpleNamespace(
            read_level=level, read_tile_size_px=read, requested_tile_size_px=job.input_px, x=corner[:, 0],
            y=corner[:, 1], num_tiles=len(xy), tile_size_lv0=lv0, overlap=1 - step / lv0, step_px_lv0=step,
            level_downsamples=downsamples,
        )  # fmt: skip
        overlapping = step < lv0
        blocks += overlapping
        collate = OnTheFlyBatchTileCollator(
            image_path=Path(job.slide), tiling_result=tiling, backend=job.backend, use_supertiles=overlapping,
            num_cucim_workers=job.workers,
        )  # fmt: skip
        order = collate.ordered_indices if overlapping else np.arange(len(xy))
        sampler = collate.build_batch_sampler(batch_size=job.batch, dataset_indices=order)
        batches = {"batch_sampler": sampler} if sampler is not None else {"batch_size": job.batch}
        # cuCIM reads in threads of its own: slide2vec takes one loader process for four of them.
        processes = 1 if job.backend == "cucim" else job.workers
        loader = torch.utils.data.DataLoader(
            TileIndexDataset(order), collate_fn=collate, num_workers=processes, **batches
        )
        for _, pixels, _ in loader:
            embed(normalised(pixels, job))
    seconds = time.perf_counter() - began
    assert embed.windows == len(xy) * len(job.mpps)
    packages = {name: version(name) for name in ("slide2vec", "hs2p", "torch")}
    return {"seconds": seconds, "forward_s": embed.seconds, "versions": packages}


CONTESTANTS = {
    "plain": plain,
    "plain-level-0": plain_level_0,
    "mmap": mmap,
    "forward": forward,
    "lazyslide": lazyslide,
    "slide2vec": slide2vec,
}

if __name__ == "__main__":
    main()

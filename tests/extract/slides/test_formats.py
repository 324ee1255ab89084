"""One picture in many formats gives the same embeddings; pyramids are read at the right place."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.readers import open_cohort
from mmap_st.errors import ImageError, RegionError, ResolutionError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.slides.formats.openslide_format import OpenSlideSlide
from mmap_st.extract.slides.formats.pixels import levels_of
from mmap_st.extract.slides.formats.tiff import TiffSlide
from mmap_st.extract.slides.slide import open_slide, resolve_source_mpp
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.windows.geometry import level_for
from mmap_st.extract.windows.reader import read_window

MPP = 0.5
LITE0 = EncoderRequest(encoder_spec("efficientnet-lite0"))


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture with structure at several scales."""
    rng = np.random.default_rng(0)
    picture = Image.new("RGB", (900, 700), (225, 160, 200))
    for cells, weight in ((12, 0.5), (60, 0.4), (230, 0.3)):
        noise = rng.integers(40, 230, (cells * 7 // 9 + 1, cells, 3), np.uint8)
        layer = Image.fromarray(noise).resize(picture.size, Image.Resampling.BICUBIC)
        picture = Image.blend(picture, layer, weight)
    path = tmp_path_factory.mktemp("formats") / "slide.jpg"
    picture.save(path, quality=92)
    return path


@pytest.fixture(scope="module")
def pixels(jpeg: Path) -> np.ndarray:
    return np.asarray(Image.open(jpeg).convert("RGB"))


def write_tiled(path: Path, pixels: np.ndarray, **options) -> None:
    options = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER", **options}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None, **options)


def write_pyramid(path: Path, levels: list[np.ndarray], **options) -> None:
    with tifffile.TiffWriter(path) as file:
        for index, level in enumerate(levels):
            file.write(
                level, tile=(256, 256), photometric="rgb", metadata=None, subfiletype=int(index > 0),
                resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER", **options,
            )  # fmt: skip


def write_ome(path: Path, levels: list[np.ndarray], axes: str = "YXS") -> None:
    """OME-TIFF: its pyramid in sub-resolutions, its scale in XML."""
    about = {"axes": axes, "PhysicalSizeX": MPP * 1000, "PhysicalSizeXUnit": "nm"}
    about |= {"PhysicalSizeY": MPP, "PhysicalSizeYUnit": "µm"}
    options = {"tile": (256, 256), "photometric": "rgb"}
    if axes == "CYX":
        levels = [np.moveaxis(level, 2, 0) for level in levels]
        options["planarconfig"] = "separate"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(levels[0], subifds=len(levels) - 1, metadata=about, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **options)


def write_dicom(folder: Path, pixels: np.ndarray, tile: int = 256) -> None:
    """A whole-slide image of one level, uncompressed."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    padded = np.full((rows * tile, columns * tile, 3), 255, np.uint8)
    padded[:height, :width] = pixels
    frames = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (
        generate_uid() for _ in range(3)
    )
    data.Modality = "SM"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.DimensionOrganizationType = "TILED_FULL"
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.Columns = data.Rows = tile
    data.NumberOfFrames = len(frames)
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "RGB"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.NumberOfOpticalPaths, data.TotalPixelMatrixFocalPlanes = 1, 1
    measures = Dataset()
    measures.PixelSpacing = [MPP / 1000, MPP / 1000]
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PixelData = frames.tobytes()
    folder.mkdir()
    pydicom.dcmwrite(folder / "level0.dcm", data, enforce_file_format=True)


def write_ome_zarr(path: Path, levels: list[np.ndarray]) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    datasets = []
    for index, level in enumerate(levels):
        array = group.create_array(
            str(index), shape=level.shape[2:] + level.shape[:2], dtype="uint8", chunks=(3, 256, 256)
        )
        array[:] = np.moveaxis(level, 2, 0)
        scale = [1.0, MPP * levels[0].shape[0] / level.shape[0], MPP * levels[0].shape[1] / level.shape[1]]
        datasets.append(
            {"path": str(index), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def embed(image: Path, folder: Path, mpp: float | None = None) -> np.ndarray:
    """(n, 2 magnifications, d) embeddings of nine spots, some at the border."""
    rows = ["id,x,y"] + [f"{x}-{y},{x}.3,{y}.6" for x in (20, 430, 880) for y in (15, 350, 690)]
    spots = folder / "spots.csv"
    spots.write_text("\n".join(rows))
    slide = CohortSlide("S", image=image, spots=spots, reader="table", mpp=mpp)
    path = folder / f"{image.name}.zarr"
    report = extract_cohort(Cohort((slide,), "test"), path, LITE0, (0.5, 2.0, 4.0))
    assert not report.failed, report.failed
    stored = FeatureStore.open(path).slide("S")
    assert stored.source_mpp == MPP
    return np.stack([m.embedding() for m in stored.complete("efficientnet-lite0").values()], axis=1)


@pytest.fixture(scope="module")
def reference(jpeg: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return embed(jpeg, tmp_path_factory.mktemp("reference"), MPP)


@pytest.mark.parametrize("kind", ["png", "tiled", "ome", "planar", "dicom", "ome-zarr", "strips"])
def test_one_level_without_loss_is_the_same_to_the_bit(
    tmp_path: Path, pixels: np.ndarray, reference: np.ndarray, kind: str
) -> None:
    image = tmp_path / {"tiled": "a.tif", "ome": "a.ome.tif", "planar": "b.ome.tif", "strips": "c.tif"}.get(
        kind, kind
    )
    if kind == "png":
        image = tmp_path / "a.png"
        Image.fromarray(pixels).save(image)
    elif kind == "tiled":
        write_tiled(image, pixels)
    elif kind == "strips":
        Image.fromarray(pixels).save(image, compression="tiff_lzw", dpi=(25400 / MPP, 25400 / MPP))
    elif kind == "dicom":
        write_dicom(image, pixels)
    elif kind == "ome-zarr":
        write_ome_zarr(image, [pixels])
    else:
        write_ome(image, [pixels], "CYX" if kind == "planar" else "YXS")
    given = MPP if kind == "png" else None  # the others say their scale themselves
    assert np.array_equal(embed(image, tmp_path, given), reference)


@pytest.mark.parametrize("kind", ["tiled", "ome", "ome-zarr"])
def test_another_pyramid_gives_nearly_the_same(
    tmp_path: Path, pixels: np.ndarray, reference: np.ndarray, kind: str
) -> None:
    whole = Image.fromarray(pixels)
    halves = [np.asarray(whole.reduce(factor)) for factor in (2, 4)]
    image = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif" if kind == "tiled" else "a.zarr")
    write = {"tiled": write_pyramid, "ome": write_ome, "ome-zarr": write_ome_zarr}[kind]
    write(image, [pixels, *halves])
    assert len(open_slide(image).levels) == 3
    check_cosine(embed(image, tmp_path), reference)


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_another_codec_gives_nearly_the_same(
    tmp_path: Path, pixels: np.ndarray, reference: np.ndarray, codec: str
) -> None:
    write_pyramid(tmp_path / "a.tif", [pixels], compression=codec, compressionargs={"level": 90})
    check_cosine(embed(tmp_path / "a.tif", tmp_path), reference)


def check_cosine(found: np.ndarray, reference: np.ndarray) -> None:
    norms = np.linalg.norm(found, axis=2) * np.linalg.norm(reference, axis=2)
    cosine = (found * reference).sum(axis=2) / norms
    assert cosine.min() >= 0.99


class Waves:
    """A slide whose pixels are known at every level: a wave along x and one along y."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.levels = levels_of(sizes)
        self.size, self.mpp = self.levels[0].size, None

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        across, down = self.levels[level].downsample
        x, y = (np.arange(box[0], box[2]) + 0.5) * across, (np.arange(box[1], box[3]) + 0.5) * down
        return Image.fromarray(waves(x, y))


PERIOD = 400.0
AMPLITUDE = 110.0


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(len(y), len(x), 3) a wave along x in red, along y in green; positions in level-0 pixels."""
    red, green = (128 + AMPLITUDE * np.sin(2 * np.pi * v / PERIOD) for v in (x, y))
    grid = np.stack(
        [*np.broadcast_arrays(red[None, :], green[:, None]), np.full((len(y), len(x)), 128.0)], axis=-1
    )
    return np.round(grid).astype(np.uint8)


def displacement(window: np.ndarray, box: list[float]) -> float:
    """Level-0 pixels by which a window is off, at most, along x or y: least squares of its waves' phase."""
    n = window.shape[0]
    worst = 0.0
    for low, high, wave in ((box[0], box[2], window[n // 2, :, 0]), (box[1], box[3], window[:, n // 2, 1])):
        at = low + (np.arange(n) + 0.5) * (high - low) / n
        angle = 2 * np.pi * at / PERIOD
        design = np.column_stack([np.sin(angle), np.cos(angle), np.ones(n)])
        inner = slice(3, -3)
        sine, cosine, _ = np.linalg.lstsq(design[inner], wave[inner].astype(float), rcond=None)[0]
        worst = max(worst, abs(np.arctan2(cosine, sine)) * PERIOD / (2 * np.pi))
    return worst


@given(
    width=st.integers(9_000, 40_000),
    height=st.integers(9_000, 40_000),
    downsamples=st.lists(st.floats(1.9, 33.0), max_size=4),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    shrink=st.floats(0.4, 40.0),
)
@example(width=39_990, height=11_997, downsamples=[3.999], place=(0.97, 0.96), shrink=12.1)
@example(width=20_003, height=30_001, downsamples=[2.0003], place=(0.99, 0.99), shrink=6.2)
@settings(max_examples=150)
def test_windows_lie_within_half_a_pixel_at_any_level(width, height, downsamples, place, shrink) -> None:
    sizes = [(width, height)]
    sizes += [(round(width / d), round(height / d)) for d in sorted(downsamples)]
    slide = Waves(sizes)
    # A window of about two periods, so that its phase can be read.
    input_px = max(16, round(2 * PERIOD / shrink))
    half = input_px * shrink / 2
    x, y = place[0] * width, place[1] * height
    box = [x - half, y - half, x + half, y + half]
    assert displacement(read_window(slide, box, input_px), box) < 0.5


@given(st.lists(st.floats(1.0, 64.0), max_size=6), st.floats(0.1, 200.0))
def test_a_level_is_the_coarsest_that_is_twelve_times_as_fine(downsamples, shrink) -> None:
    pairs = [(1.0, 1.0), *((d, d) for d in downsamples)]
    chosen = pairs[level_for(pairs, shrink)][0]
    fine = [d for d, _ in pairs if d * 12 <= shrink]
    assert chosen == (max(fine) if fine else 1.0)


@pytest.mark.parametrize(("width", "small"), [(3999, 1000), (6001, 3000)])
@pytest.mark.parametrize("opened", [OpenSlideSlide, TiffSlide])
def test_a_pyramid_whose_downsample_is_no_whole_number_is_read_at_the_right_place(
    tmp_path: Path, width: int, small: int, opened
) -> None:
    height = 1200
    down = round(height * small / width)
    x, y = (np.arange(width) + 0.5), (np.arange(height) + 0.5)
    level = waves((np.arange(small) + 0.5) * width / small, (np.arange(down) + 0.5) * height / down)
    write_pyramid(tmp_path / "a.tif", [waves(x, y), level])
    slide = opened(tmp_path / "a.tif")
    assert slide.levels[1].downsample == (width / small, height / down)
    shrink = 12 * width / small + 0.7
    input_px = round(900 / shrink)
    half = input_px * shrink / 2
    for centre in (half + 10, width / 2 + 0.3, width - half - 10):
        box = [centre - half, 600.2 - half, centre + half, 600.2 + half]
        assert displacement(read_window(slide, box, input_px), box) < 0.5


def test_a_printers_resolution_is_no_scale(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif", dpi=(72, 72))
    Image.fromarray(pixels).save(tmp_path / "a.jpg", dpi=(300, 300))
    write_tiled(tmp_path / "b.tif", pixels, resolution=(72, 72), resolutionunit="INCH")
    assert [open_slide(tmp_path / name).mpp for name in ("a.tif", "a.jpg", "b.tif")] == [None] * 3


@pytest.mark.parametrize("name", ["a.ome.tif", "a.tif"])
def test_sixteen_bits_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    deep = np.zeros((300, 300, 3), np.uint16)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, deep[..., 0], photometric="minisblack", metadata=None)
    else:
        tifffile.imwrite(tmp_path / name, deep, photometric="rgb", metadata={"axes": "YXS"}, ome=True)
    with pytest.raises(ImageError, match="8-bit"):
        open_slide(tmp_path / name).read((0, 0, 9, 9))


def test_more_channels_than_colours_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", np.zeros((7, 300, 300), np.uint8), metadata={"axes": "CYX"}, ome=True
    )
    with pytest.raises(ImageError, match="7 channels"):
        open_slide(tmp_path / "a.ome.tif")


def test_stains_of_fluorescence_are_no_colours(tmp_path: Path) -> None:
    path, stains = tmp_path / "a.ome.tif", np.zeros((3, 300, 300), np.uint8)
    for names, refused in ((["DAPI", "CD3", "CD8"], True), (["Red", "Green", "Blue"], False)):
        tifffile.imwrite(path, stains, metadata={"axes": "CYX", "Channel": {"Name": names}}, ome=True)
        if refused:
            with pytest.raises(ImageError, match=r"a\.ome\.tif has the channels DAPI, CD3, CD8"):
                open_slide(path)
        else:
            assert open_slide(path).size == (300, 300)


def test_the_largest_image_of_an_ome_tiff_is_the_slide(tmp_path: Path, pixels: np.ndarray) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for picture, mpp in ((pixels[:200, :200], 8.0), (pixels, MPP)):
            about = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            file.write(picture, photometric="rgb", metadata=about)
    slide = open_slide(tmp_path / "a.ome.tif")
    assert slide.size == pixels.shape[1::-1]
    assert slide.mpp == MPP
    assert np.array_equal(np.asarray(slide.read((10, 20, 60, 90))), pixels[20:90, 10:60])


def test_a_scale_finer_than_light_is_one_in_another_unit(tmp_path: Path, pixels: np.ndarray) -> None:
    about = {"PhysicalSizeX": MPP / 1000, "PhysicalSizeY": MPP / 1000}  # mm, said to be um
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", metadata=about, ome=True)
    with pytest.raises(ResolutionError, match=r"0\.0005 \(from the image's metadata\), are implausible"):
        resolve_source_mpp(CohortSlide("S"), open_slide(tmp_path / "a.ome.tif").mpp, None)


def test_two_dicom_slides_in_one_folder_are_told_apart(tmp_path: Path, pixels: np.ndarray) -> None:
    write_dicom(tmp_path / "one", pixels)
    write_dicom(tmp_path / "two", pixels[:300, :400])
    (tmp_path / "two" / "level0.dcm").rename(tmp_path / "one" / "other.dcm")
    with pytest.raises(ImageError, match=r"one holds 2 DICOM slides; name a file .*level0\.dcm"):
        open_slide(tmp_path / "one")
    assert open_slide(tmp_path / "one" / "other.dcm").size == (400, 300)
    (tmp_path / "one" / "other.dcm").write_bytes(b"no slide")
    assert open_slide(tmp_path / "one").size == pixels.shape[1::-1]


@pytest.mark.parametrize("name", ["level0", "IM_0001", "1.2.840.10008.5.1.4"])
def test_dicom_is_known_without_its_suffix(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    write_dicom(tmp_path / "one", pixels)
    (tmp_path / "one" / "level0.dcm").rename(tmp_path / "one" / name)
    (tmp_path / "one" / "notes.txt").write_text("no slide")
    for place in (tmp_path / "one", tmp_path / "one" / name):
        slide = open_slide(place)
        assert (slide.size, slide.notes) == (pixels.shape[1::-1], ())
        assert np.array_equal(np.asarray(slide.read((10, 20, 60, 90))), pixels[20:90, 10:60])
    for source in (tmp_path, tmp_path / "one", tmp_path / "one" / name):
        (row,) = open_cohort(f"images:{source}").slides
        assert open_slide(row.image).size == pixels.shape[1::-1]


def test_focal_planes_of_dicom_are_refused_in_a_sentence(tmp_path: Path, pixels: np.ndarray) -> None:
    write_dicom(tmp_path / "one", pixels)
    path = tmp_path / "one" / "level0.dcm"
    data = pydicom.dcmread(path)
    data.TotalPixelMatrixFocalPlanes, data.NumberOfFrames = 2, 2 * data.NumberOfFrames
    data.PixelData = data.PixelData * 2
    pydicom.dcmwrite(path, data)
    with pytest.raises(ImageError, match=r"level0\.dcm has several focal planes.* export one"):
        open_slide(path)


def test_an_ome_zarr_is_found_among_images(tmp_path: Path, pixels: np.ndarray) -> None:
    write_ome_zarr(tmp_path / "S1.ome.zarr", [pixels])
    for place in (tmp_path, tmp_path / "S1.ome.zarr"):
        (row,) = open_cohort(f"images:{place}").slides
        assert (row.slide, open_slide(row.image).size) == ("S1", pixels.shape[1::-1])


@pytest.mark.parametrize("name", ["a.ome.tif", "a.tif", "a.zarr", "folder", "a.dcm"])
def test_damaged_images_are_refused_in_one_sentence(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    path = tmp_path / name
    if name == "a.zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{")
    elif name == "folder":
        path.mkdir()
    elif name == "a.dcm":
        path.write_bytes(b"\0" * 128 + b"DICM" + b"\x07" * 300)
    else:
        (write_ome if "ome" in name else write_pyramid)(path, [pixels])
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((ImageError, RegionError)) as error:
        open_slide(path).read((0, 0, 200, 200))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_real_pyramid_gives_nearly_what_its_finest_level_gives(tmp_path: Path, shared: Path) -> None:
    image = shared / "data" / "wsi" / "her2st_C2_crop_pyramid.tif"
    slide = open_slide(image)
    assert len(slide.levels) == 5
    flat = tmp_path / "flat.png"
    slide.read((0, 0, *slide.size)).save(flat, compress_level=1)
    rows = ["id,x,y"] + [f"{x}-{y},{x},{y}" for x in (900, 3000, 5200) for y in (800, 2600, 4300)]
    (tmp_path / "spots.csv").write_text("\n".join(rows))
    found = {}
    for path in (image, flat):
        row = CohortSlide("S", image=path, spots=tmp_path / "spots.csv", reader="table", mpp=slide.mpp)
        report = extract_cohort(
            Cohort((row,), "test"), tmp_path / f"{path.stem}.zarr", LITE0, (1.0, 2.0, 4.0)
        )
        assert not report.failed
        stored = FeatureStore.open(tmp_path / f"{path.stem}.zarr").slide("S").complete("efficientnet-lite0")
        found[path] = np.stack([m.embedding() for m in stored.values()], axis=1)
    check_cosine(found[image], found[flat])

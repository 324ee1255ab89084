"""Files in the form of each public layout, made small: what the tests of the readers read."""

import gzip
import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import polars as pl
import scipy.io
from PIL import Image
from scipy import sparse

GENES = ("GAPDH", "ERBB2", "CD3E", "KRT8", "ACTB", "FASN")
GENE_IDS = tuple(f"ENSG{i:011d}" for i in range(1, len(GENES) + 1))


def picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """Coloured noise, as large as told."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(60, 255, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def counts(spots: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(4, (spots, len(GENES))).astype(np.float32)


def barcodes(n: int) -> list[str]:
    letters = np.array(list("ACGT"))
    return ["".join(letters[[(i // 4**k) % 4 for k in range(16)]]) + "-1" for i in range(n)]


def hexagon(rows: int = 6, columns: int = 6) -> np.ndarray:
    """(n, 2) array_row and array_col of Visium."""
    return np.array([(r, 2 * c + r % 2) for r in range(rows) for c in range(columns)])


def visium_pixels(place: np.ndarray, mpp: float, corner: float = 300.0) -> np.ndarray:
    """(n, 2) x, y in pixels of spots 100 um apart."""
    x_um, y_um = place[:, 1] * 50.0, place[:, 0] * 100.0 * np.sqrt(3) / 2
    return np.column_stack([x_um, y_um]) / mpp + corner


def write_10x_h5(path: Path, ids: list[str], matrix: np.ndarray, antibody: bool = False) -> None:
    """The matrix of Cell Ranger 3 and later; with `antibody`, its last feature is no gene."""
    stored = sparse.csc_matrix(matrix.T)
    kinds = ["Gene Expression"] * len(GENES)
    if antibody:
        kinds[-1] = "Antibody Capture"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(ids, "S")
        group["data"], group["indices"], group["indptr"] = (
            stored.data.astype(np.int32), stored.indices.astype(np.int64), stored.indptr.astype(np.int64),
        )  # fmt: skip
        group["shape"] = np.array(stored.shape, np.int32)
        features = group.create_group("features")
        for key, values in (("id", GENE_IDS), ("name", GENES), ("feature_type", kinds)):
            features[key] = np.array(values, "S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")


def write_10x_mtx(folder: Path, ids: list[str], matrix: np.ndarray) -> None:
    folder.mkdir(parents=True)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sparse.coo_matrix(matrix.T.astype(np.int64)))
    lines = [f"{i}\t{name}\tGene Expression" for i, name in zip(GENE_IDS, GENES, strict=True)]
    (folder / "features.tsv.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(("\n".join(ids) + "\n").encode()))


def write_visium(
    root: Path, *, mpp: float = 0.5, version: int = 2, matrix: str = "h5", hires: float = 0.2, seed: int = 0
) -> Path:
    """Space Ranger's outs of one small sample; returns the full-resolution image, which lies beside it."""
    place = hexagon()
    xy = visium_pixels(place, mpp)
    ids = barcodes(len(place))
    spatial = root / "outs" / "spatial"
    spatial.mkdir(parents=True)
    table = pl.DataFrame(
        {
            "barcode": [*ids, "TTTTTTTTTTTTTTTT-1"],
            "in_tissue": [1] * len(ids) + [0],
            "array_row": [*place[:, 0].tolist(), 70],
            "array_col": [*place[:, 1].tolist(), 100],
            "pxl_row_in_fullres": [*xy[:, 1].tolist(), 9000.0],
            "pxl_col_in_fullres": [*xy[:, 0].tolist(), 9000.0],
        }
    )
    if version == 1:
        table.write_csv(spatial / "tissue_positions_list.csv", include_header=False)
    else:
        table.write_csv(spatial / "tissue_positions.csv")
    width, height = (int(v) + 300 for v in xy.max(axis=0))
    factors = {
        "spot_diameter_fullres": 65 / mpp,
        "tissue_hires_scalef": hires,
        "tissue_lowres_scalef": hires / 4,
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    image = picture(root / "fullres.png", width, height, seed)
    Image.open(image).resize((round(width * hires), round(height * hires))).save(
        spatial / "tissue_hires_image.png"
    )
    # The matrix has the spots in another order than the positions.
    order = np.random.default_rng(seed).permutation(len(ids))
    values = counts(len(ids), seed)[order]
    shuffled = [ids[i] for i in order]
    if matrix == "h5":
        write_10x_h5(root / "outs" / "filtered_feature_bc_matrix.h5", shuffled, values)
    else:
        write_10x_mtx(root / "outs" / "filtered_feature_bc_matrix", shuffled, values)
    return image


def write_visium_hd(root: Path, *, mpp: float = 0.25, bin_um: int = 8, side: int = 12) -> Path:
    """The bins of one size of one sample; returns its image."""
    place = np.array([(r, c) for r in range(side) for c in range(side)])
    xy = place[:, ::-1] * bin_um / mpp + 400.0
    ids = [f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in place]
    folder = root / "outs" / "binned_outputs" / f"square_{bin_um:03d}um"
    (folder / "spatial").mkdir(parents=True)
    pl.DataFrame(
        {
            "barcode": ids,
            "in_tissue": [1] * len(ids),
            "array_row": place[:, 0],
            "array_col": place[:, 1],
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        }
    ).write_parquet(folder / "spatial" / "tissue_positions.parquet")
    factors = {"bin_size_um": float(bin_um), "microns_per_pixel": mpp, "spot_diameter_fullres": bin_um / mpp}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5", ids, counts(len(ids)))
    width, height = (int(v) + 400 for v in xy.max(axis=0))
    return picture(root / "image.png", width, height)


def make_adata(mpp: float = 0.5, *, place: np.ndarray | None = None, seed: int = 0) -> anndata.AnnData:
    """An AnnData of a small Visium sample with raw counts in X."""
    place = hexagon() if place is None else place
    obs = pd.DataFrame({"array_row": place[:, 0], "array_col": place[:, 1]}, index=barcodes(len(place)))
    var = pd.DataFrame({"gene_ids": GENE_IDS}, index=list(GENES))
    adata = anndata.AnnData(sparse.csr_matrix(counts(len(place), seed)), obs=obs, var=var)
    adata.obsm["spatial"] = visium_pixels(place, mpp)
    return adata


def lognorm(values: np.ndarray) -> np.ndarray:
    return np.log1p(values / np.maximum(values.sum(axis=1, keepdims=True), 1) * 1e4).astype(np.float32)


def write_hest(root: Path, *, mpp: float = 0.5, embedded: float | None = None, flat: bool = False) -> Path:
    """One sample of HEST-1k; `embedded` is what the image says of its scale, `mpp` what is true."""
    adata = make_adata(mpp)
    width, height = (int(v) + 300 for v in adata.obsm["spatial"].max(axis=0))
    about = {
        "id": "TENX1", "patient": "Patient 1", "dataset_title": "A study", "st_technology": "Visium",
        "pixel_size_um_embedded": embedded, "pixel_size_um_estimated": mpp, "inter_spot_dist": 100.0,
    }  # fmt: skip
    st, wsis, metadata = (root, root, root) if flat else (root / "st", root / "wsis", root / "metadata")
    for folder in (st, wsis, metadata):
        folder.mkdir(parents=True, exist_ok=True)
    name = "aligned_adata" if flat else "TENX1"
    adata.write_h5ad(st / f"{name}.h5ad")
    (metadata / ("metrics.json" if flat else "TENX1.json")).write_text(json.dumps(about))
    image = wsis / ("aligned_fullres_HE.tif" if flat else "TENX1.tif")
    write_tiff(image, width, height, embedded)
    if flat:
        picture(root / "downscaled_fullres.jpeg", 100, 100)
    return image


def write_tiff(path: Path, width: int, height: int, mpp: float | None) -> None:
    """A tiled TIFF whose resolution says `mpp`."""
    import tifffile

    rng = np.random.default_rng(0)
    noise = rng.integers(60, 255, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    extra = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None, **extra)


def st_tables(side: int = 5, mpp: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) array places and (n, 2) pixels of a legacy ST section."""
    place = np.array([(x, y) for y in range(1, side + 1) for x in range(1, side + 1)])
    return place, place * 200.0 / mpp


def st_counts(place: np.ndarray, names: tuple[str, ...] = GENES) -> str:
    rows = [
        f"{x}x{y}\t" + "\t".join(f"{v:.0f}" for v in row)
        for (x, y), row in zip(place, counts(len(place)), strict=True)
    ]
    return "\n".join(["\t" + "\t".join(names), *rows]) + "\n"


def write_cscc(root: Path, name: str = "P2_ST_rep1", accession: str = "GSM4284316") -> None:
    """One section in the form of GSE144240 (Ji et al. 2020)."""
    root.mkdir(parents=True, exist_ok=True)
    place, xy = st_tables()
    (root / f"{accession}_{name}_stdata.tsv.gz").write_bytes(gzip.compress(st_counts(place).encode()))
    rows = [
        f"{x}\t{y}\t{x}.01\t{y}.02\t{px:.2f}\t{py:.2f}" for (x, y), (px, py) in zip(place, xy, strict=True)
    ]
    text = "\n".join(["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y", *rows]) + "\n"
    (root / f"{accession}_spot_data-selection-{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    picture(root / f"{accession}_{name}.jpg", 1800, 1800)


def write_stnet(root: Path, name: str = "BC23209_C1", other: str | None = None) -> None:
    """One section in the form of STNet's breast set (He et al. 2020); `other` names its image and spots."""
    other = other or name
    root.mkdir(parents=True, exist_ok=True)
    place, xy = st_tables()
    versioned = tuple(f"{gene_id}.{i}" for i, gene_id in enumerate(GENE_IDS, start=1))
    (root / f"{name}_stdata.tsv.gz").write_bytes(gzip.compress(st_counts(place, versioned).encode()))
    rows = [f"{x}x{y},{px:.2f},{py:.2f}" for (x, y), (px, py) in zip(place, xy, strict=True)]
    (root / f"spots_{other}.csv.gz").write_bytes(gzip.compress(("\n".join([",X,Y", *rows]) + "\n").encode()))
    (root / f"{name}_Coords.tsv").write_text("tumor\n1\n")
    picture(root / f"HE_{other}.jpg", 1800, 1800)


def write_spatialdata(path: Path, mpp: float = 0.5, hires: float = 0.5) -> np.ndarray:
    """A Visium sample as spatialdata-io writes it: the image is smaller than the spots' pixels."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    adata = make_adata(mpp)
    xy = adata.obsm.pop("spatial")
    order = np.random.default_rng(0).permutation(len(xy))
    width, height = (round((v + 300) * hires) for v in xy.max(axis=0))
    pixels = np.random.default_rng(0).integers(0, 255, (3, height, width), np.uint8)
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), scale_factors=[2],
        transformations={"global": Scale([1 / hires, 1 / hires], axes=("x", "y"))},
    )  # fmt: skip
    shapes = ShapesModel.parse(
        xy[order], geometry=0, radius=27.5 / mpp, index=order, transformations={"global": Identity()}
    )
    adata.obs["region"] = "S1"
    adata.obs["region"] = adata.obs["region"].astype("category")
    adata.obs["spot"] = np.arange(len(xy))
    table = TableModel.parse(adata, region="S1", region_key="region", instance_key="spot")
    store = sd.SpatialData(images={"S1_hires": image}, shapes={"S1": shapes}, tables={"table": table})
    store.write(path)
    return xy


def write_xenium(
    root: Path,
    *,
    matrix: np.ndarray | None = None,
    transcripts: pl.DataFrame | None = None,
    cells: str = "",
    pixels: np.ndarray | None = None,
) -> Path:
    """A bundle with its H&E beside it, of 36 squares of 100 um unless told; returns the bundle.

    `matrix` maps pixels of the H&E to pixels of the morphology image; `cells` (parquet or csv.gz) writes cells
    too, each with its transcripts, and a matrix of them.
    """
    import tifffile

    bundle = root / "section_outs"
    bundle.mkdir(parents=True)
    matrix = np.diag([0.5 / 0.2125, 0.5 / 0.2125, 1]) if matrix is None else matrix
    mpp = 0.2125 * float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    table = xenium_transcripts() if transcripts is None else transcripts
    (bundle / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125, "region_name": "Region 1"}))
    table.write_parquet(bundle / "transcripts.parquet")
    if cells:
        write_xenium_cells(bundle, table, cells)
    np.savetxt(root / "section_he_imagealignment.csv", matrix, delimiter=",")
    if pixels is None:
        side = round(1200 / mpp)
        noise = np.random.default_rng(0).integers(60, 255, (side // 16 + 1, side // 16 + 1, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
    about = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    about |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    image = root / "section_he_image.ome.tif"
    tifffile.imwrite(image, pixels, ome=True, photometric="rgb", tile=(256, 256), metadata=about)
    return bundle


def xenium_transcripts(seed: int = 0) -> pl.DataFrame:
    """Transcripts of 36 squares, with as many of controls and of low quality among them."""
    rng = np.random.default_rng(seed)
    number = counts(36, seed).astype(int)
    square, gene = (a.repeat(number.ravel()) for a in np.divmod(np.arange(number.size), len(GENES)))
    corner = np.column_stack([square % 6, square // 6]) * 100.0 + 300
    xy = corner + rng.random((len(square), 2)) * 100
    names = np.array(GENES)[gene]
    quality = np.full(len(square), 30.0)
    controls = ["NegControlProbe_00042", "UnassignedCodeword_0001", "ERBB2"]
    xy = np.vstack([xy, rng.random((30, 2)) * 1000])
    names = np.concatenate([names, np.tile(controls, 10)])
    quality = np.concatenate([quality, np.tile([40.0, 40.0, 19.99], 10)])
    columns = {
        "transcript_id": np.arange(len(xy)), "cell_id": [f"c{i % 50}" for i in range(len(xy))],
        "overlaps_nucleus": np.ones(len(xy), np.uint8), "feature_name": names,
        "x_location": xy[:, 0].astype(np.float32), "y_location": xy[:, 1].astype(np.float32),
        "z_location": np.zeros(len(xy), np.float32), "qv": quality.astype(np.float32),
        "is_gene": np.isin(names, GENES),
    }  # fmt: skip
    return pl.DataFrame(columns).sample(fraction=1.0, shuffle=True, seed=seed)


def write_xenium_cells(bundle: Path, transcripts: pl.DataFrame, suffix: str = "parquet") -> None:
    """A cell for every two transcripts that count, in the middle of the first, and the matrix of the cells."""
    kept = transcripts.filter(pl.col("is_gene") & (pl.col("qv") >= 20))
    cell = np.arange(len(kept)) // 2
    values = np.zeros((cell.max() + 1, len(GENES)), np.float32)
    np.add.at(values, (cell, [GENES.index(name) for name in kept["feature_name"]]), 1)
    ids = [f"cell{i}-1" for i in range(len(values))]
    first = kept.gather_every(2)
    xy = {"x_centroid": first["x_location"], "y_centroid": first["y_location"]}
    # The matrix has the cells in another order than their table.
    table = pl.DataFrame({"cell_id": ids, **xy}).reverse()
    if suffix == "parquet":
        table.write_parquet(bundle / "cells.parquet")
    else:
        (bundle / "cells.csv.gz").write_bytes(gzip.compress(table.write_csv().encode()))
    write_10x_h5(bundle / "cell_feature_matrix.h5", ids, values)

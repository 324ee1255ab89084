import torch
from mmap_st.extract.encoders import CustomModel, EncoderSpec, Pooling, Preprocessing


def network() -> torch.nn.Module:
    """Maps images (b, 3, 64, 64), normalised, to embeddings (b, 48)."""
    return torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())


def make() -> EncoderSpec:
    return EncoderSpec(
        name="colour-grid",
        model=CustomModel(network),
        input_px=64,
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        pooling=Pooling("own", text="mean colour of 4 x 4 squares"),
    )

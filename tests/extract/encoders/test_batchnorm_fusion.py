"""Folding of batch normalisation: what is folded, and that nothing else is."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from mmap_st.extract.encoders.build import fold_batch_norms


def _settled(model: torch.nn.Module) -> torch.nn.Module:
    """Give every normalisation statistics and weights of its own, so that a wrong pair shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2.0, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(generator=generator)
    return model.eval().requires_grad_(False)


def _norms(model: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [("test_efficientnet", 0), ("resnet10t", 0), ("test_convnext", 0), ("test_vit", 0), ("resnet18", 0)],
)
def test_folded_models_give_the_same_embeddings(name: str, left: int) -> None:
    model = _settled(timm.create_model(name, pretrained=False, num_classes=0))
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model, 96)
    assert _norms(folded) == left
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if _norms(model) == 0:
        assert folded is model


class _Twice(torch.nn.Module):
    """One convolution before two normalisations: neither may be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        self.first, self.second = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.convolution(x)
        return self.first(made) + self.second(made)


class _Skipping(_Twice):
    """The convolution's own output is needed too: only the check of the folded model can tell."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.convolution(x)
        return self.first(made) + made


class _Shared(_Twice):
    """A convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 3, 3)
        self.first = torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(self.first(self.convolution(x)))


class _Own(torch.nn.BatchNorm2d):
    """A class of its own may do anything besides."""


@pytest.mark.parametrize("kind", [_Twice, _Skipping, _Shared])
def test_what_cannot_be_folded_stays(kind: type[_Twice]) -> None:
    model = _settled(kind())
    folded = fold_batch_norms(model, 16)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.equal(folded(x), model(x))


def test_unknown_normalisations_stay() -> None:
    model = _settled(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), _Own(4)))
    assert fold_batch_norms(model, 16) is model

"""ConvLSTM beside Keras' own layers with the same weights."""

from typing import Any

import pytest
import torch

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models import build
from harec_deploy.models.convlstm import FILTERS, ConvLSTM
from harec_deploy.spec import HeadSpec


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keras on PyTorch; its settings file is written to a folder of the test, not to the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        import keras

        assert keras.backend.backend() == "torch"
        return keras


def give_weights(layer: Any, ours: ConvLSTM) -> None:
    """Copy ours into a ConvLSTM2D, whose kernels are (3, 3, in, 4 * filters)."""
    kernels = (ours.input.weight.permute(2, 3, 1, 0), ours.recurrent.weight.permute(2, 3, 1, 0), ours.input.bias)
    layer.set_weights([kernel.detach().numpy() for kernel in kernels])


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Draw all weights, biases too, so that none is 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.4, 0.4)
    return model.eval()


def test_a_layer_is_keras(keras: Any) -> None:
    torch.manual_seed(0)
    ours = randomised(ConvLSTM(3, 5, 0.2))
    maps = torch.rand(2, 6, 3, 9, 12)
    layer = keras.layers.ConvLSTM2D(5, 3, return_sequences=True)
    layer.build((None, 6, 9, 12, 3))
    give_weights(layer, ours)
    wanted = torch.as_tensor(layer(maps.permute(0, 1, 3, 4, 2))).permute(0, 1, 4, 2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(ours(maps), wanted, atol=1e-5, rtol=0)


def test_the_whole_stack_is_keras(keras: Any) -> None:
    """Clips in, logits out: layers, pooling of odd sides, the order in which maps are flattened."""
    torch.manual_seed(1)
    model = randomised(build("convlstm", HeadSpec(dropout=0.2), 4, size=Size(width=64, height=48), frames=5))
    layers = keras.layers
    stack: list[Any] = []
    for filters in FILTERS:
        stack += [layers.ConvLSTM2D(filters, 3, recurrent_dropout=0.2, return_sequences=True)]
        stack += [layers.MaxPooling3D((1, 2, 2), padding="same"), layers.TimeDistributed(layers.Dropout(0.2))]
    # Maps are flattened channels first here, as everywhere in PyTorch.
    stack += [layers.Permute((1, 4, 2, 3)), layers.Flatten(), layers.Dense(4)]
    net = keras.Sequential([layers.Input((5, 48, 64, 3)), *stack])
    for layer, ours in zip(net.layers[::3], model.encoder.backbone.layers, strict=False):
        give_weights(layer, ours)
    classifier = model.head.classifier
    net.layers[-1].set_weights([classifier.weight.detach().numpy().T, classifier.bias.detach().numpy()])
    clips = torch.randint(0, 256, (2, 5, 48, 64, 3), dtype=torch.uint8)
    wanted = torch.as_tensor(net(clips / 127.5 - 1, training=False)).detach()
    with torch.inference_mode():
        torch.testing.assert_close(model(clips), wanted, atol=1e-5, rtol=0)


def test_it_begins_as_keras_does(keras: Any) -> None:
    """The same spread of weights, a forget gate that is open, other biases 0."""
    torch.manual_seed(2)
    ours, layer = ConvLSTM(8, 14, 0.0), keras.layers.ConvLSTM2D(14, 3)
    layer.build((None, 6, 9, 12, 8))
    kernel, recurrent, bias = (weights.value.detach() for weights in layer.weights)
    assert torch.equal(ours.input.bias.detach(), bias)
    assert float(ours.input.weight.detach().std()) == pytest.approx(float(kernel.std()), rel=0.05)
    assert float(ours.recurrent.weight.detach().std()) == pytest.approx(float(recurrent.std()), rel=0.05)


def test_recurrent_dropout_hides_shares_of_the_state_from_each_gate_all_clip_long() -> None:
    torch.manual_seed(3)
    layer = ConvLSTM(3, 4, 0.25).train()
    state = torch.rand(2, 4, 6, 6) + 1
    masks = layer._masks(state)
    assert masks is not None
    assert masks.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert 0.15 < float((masks == 0).float().mean()) < 0.35
    by_gate = masks.unflatten(1, (4, 4))
    assert not torch.equal(by_gate[:, 0], by_gate[:, 1])
    # Each gate convolves what its own mask leaves.
    weights = layer.recurrent.weight.unflatten(0, (4, 4))
    wanted = [torch.nn.functional.conv2d(state * by_gate[:, gate], weights[gate], padding=1) for gate in range(4)]
    torch.testing.assert_close(layer._recalled(state, masks), torch.cat(wanted, 1))
    maps = torch.rand(1, 5, 3, 8, 8)
    assert not torch.equal(layer(maps), layer(maps))
    layer.eval()
    assert torch.equal(layer(maps), layer(maps))


def test_frames_that_would_be_pooled_away_are_refused() -> None:
    with pytest.raises(UsageError, match="convlstm takes frames of at least 39x39, not 64x38"):
        build("convlstm", HeadSpec(), 2, size=Size(width=64, height=38))
    model = build("convlstm", HeadSpec(), 2, size=Size(width=39, height=39), frames=2)
    assert model(torch.zeros((1, 2, 39, 39, 3), dtype=torch.uint8)).shape == (1, 2)

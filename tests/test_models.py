"""Models: acting equals learning, recurrent state and its resets, flat parameters."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from arcadia.config import ModelConfig, TrainConfig
from arcadia.envs import EnvSpec
from arcadia.errors import UserError
from arcadia.models import ActorCritic, FlatParameters, build_model, measure
from arcadia.models.measure import fastest_dtype
from arcadia.models.space_to_depth import SpaceToDepthConv2d, space_to_depth
from arcadia.models.torsos import CONV_TORSOS, ConvTorso

torch.set_num_threads(1)  # threads that wait for a busy core cost more than they gain here
T, B, A = 5, 3, 7
PIXELS = EnvSpec((2, 44, 44), np.dtype(np.uint8), A)
VECTOR = EnvSpec((6,), np.dtype(np.float32), A)
TORSOS = ["a3c", "nature", "mlp"]
CORES = ["none", "lstm", "gru"]


def _model(torso: str, core: str, dtype: torch.dtype = torch.float32, seed: int = 1) -> ActorCritic:
    """Build a small model whose outputs are of order 1 (logits start near 0)."""
    config = ModelConfig(torso=torso, hidden_sizes=(9, 8), core=core, core_size=11)
    model = build_model(config, VECTOR if torso == "mlp" else PIXELS, seed=seed, dtype=dtype)
    with torch.no_grad():
        model.policy.linear.weight.mul_(100)
        model.value.linear.weight.mul_(4)
    return model


def _inputs(model: ActorCritic, torso: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return observation [T, B, ...], is_first [T, B] with resets inside, and a state [B, S] from before."""
    generator = torch.Generator().manual_seed(2)
    observation = torch.randn(T, B, *model.input_shape, generator=generator).to(model.dtype)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[2, 1] = is_first[3, 0] = is_first[0, 2] = True
    state = torch.randn(model.initial_state(B).shape, generator=generator)
    return observation, is_first, state


def _act(model: ActorCritic, observation: Tensor, is_first: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Call the model row by row, carrying the state."""
    logits, value = [], []
    for t in range(len(observation)):
        output = model(observation[t : t + 1], is_first[t : t + 1], state)
        logits.append(output.policy.logits)
        value.append(output.value)
        state = output.state
    return torch.cat(logits), torch.cat(value), state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("torso", TORSOS)
@torch.no_grad()
def test_acting_row_by_row_equals_learning_from_all_rows(torso: str, core: str, dtype: torch.dtype) -> None:
    model = _model(torso, core, dtype)
    observation, is_first, state = _inputs(model, torso)
    logits, value, last_state = _act(model, observation, is_first, state)
    output = model(observation, is_first, state)
    assert output.policy.logits.shape == (T, B, A)
    assert output.value.shape == (T, B)
    assert {output.policy.logits.dtype, output.value.dtype, output.state.dtype} == {torch.float32}
    assert {logits.dtype, value.dtype, last_state.dtype} == {torch.float32}
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(output.policy.logits, logits, atol=tolerance, rtol=0)
    torch.testing.assert_close(output.value, value, atol=tolerance, rtol=0)
    torch.testing.assert_close(output.state, last_state, atol=tolerance, rtol=0)
    assert logits.std() > 0.1  # numbers that a tolerance of 2e-2 says something about
    assert value.std() > 0.1


@pytest.mark.parametrize(
    ("torso", "core", "towers", "dtype", "size"),
    [
        ("a3c", "none", "shared", torch.float32, (44, 52)),
        ("a3c", "none", "shared", torch.float32, (44, 48)),  # 10 x 11 pixels in front of stride 2
        ("a3c", "none", "shared", torch.bfloat16, (44, 52)),
        ("a3c", "lstm", "separate", torch.float32, (44, 52)),
        ("a3c", "none", "shared", torch.float32, (45, 53)),  # not in blocks of 4 x 4 pixels
        ("nature", "none", "shared", torch.float32, (44, 52)),
        ("nature", "none", "shared", torch.bfloat16, (46, 52)),
        ("nature_2", "lstm", "shared", torch.bfloat16, (44, 52)),
        ("narrow_8", "none", "separate", torch.bfloat16, (44, 52)),
    ],
)
def test_the_way_back_is_that_of_autograd(
    torso: str, core: str, towers: str, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """From activations of its own and from those kept while acting; the layers' outputs really are those given."""
    config = ModelConfig(torso=torso, core=core, core_size=11, towers=towers)
    spec = EnvSpec((2, *size), np.dtype(np.uint8), A)
    model = build_model(config, spec, seed=1, dtype=dtype)
    observation, is_first, _ = _inputs(model, torso)
    state = torch.randn(B, model.state_size, generator=torch.Generator().manual_seed(3))
    kept, before = [], state
    with torch.no_grad():
        for t in range(T):
            output = model(observation[t : t + 1], is_first[t : t + 1], before)
            kept.append(output.activations)
            before = output.state
    activations = tuple(map(torch.cat, zip(*kept, strict=True)))
    gradients, outputs = [], []
    torsos = [module for module in model.modules() if isinstance(module, ConvTorso)]
    for known, recalls in (
        ((), False),
        ((), True),
        (activations, True),
        (tuple(2 * layer for layer in activations), True),
    ):
        for module in torsos:
            module._can_recall = recalls
        model.zero_grad()
        output = model(observation, is_first, state, known)
        (output.policy.logits[..., 2].sum() + output.value.square().sum()).backward()
        gradients.append(torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()]))
        outputs.append(torch.cat((output.policy.logits.flatten(), output.value.flatten())))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    errors = [float((gradient - gradients[0]).norm() / gradients[0].norm()) for gradient in gradients]
    for i in (1, 2):
        torch.testing.assert_close(outputs[i], outputs[0], atol=tolerance, rtol=tolerance)
        assert errors[i] < tolerance
    assert errors[3] > 0.1


LAYOUTS = {
    "rows": lambda images: images,
    "some frames of each": lambda images: images.repeat(1, 2, 1, 1)[:, 1:4],
    "channels last": lambda images: images.movedim(1, -1).contiguous().movedim(-1, 1),
    "one channel, last": lambda images: images[:, :1].movedim(1, -1).contiguous().movedim(-1, 1),
    "parts of longer rows": lambda images: nn.functional.pad(images, (0, 2))[..., :-2],
    "parts of rows that begin elsewhere": lambda images: nn.functional.pad(images, (1, 3))[..., 1:-3],
    "every other pixel": lambda images: images.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("before", [0, 16, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_blocks_of_pixels_are_single_pixels_whatever_their_layout_in_memory(
    n: int, dtype: torch.dtype, layout: str, before: int
) -> None:
    images = LAYOUTS[layout](torch.arange(2 * 3 * 12 * 24).view(2, 3, 12, 24).to(dtype))
    channels = images.shape[1]
    larger = torch.zeros(2, 12 // n, 24 // n, before + channels * n * n, dtype=dtype)
    blocks = larger[..., before:]
    space_to_depth(images, n, blocks)
    assert larger[..., :before].count_nonzero() == 0
    for c, y, x in np.ndindex(channels, 12, 24):
        assert torch.equal(blocks[:, y // n, x // n, (c * n + y % n) * n + x % n], images[:, c, y, x])


@pytest.mark.parametrize(("kernel_size", "n"), [(8, 4), (4, 4), (6, 3), (4, 2)])
def test_convolution_of_blocks_is_the_one_of_pixels(kernel_size: int, n: int) -> None:
    torch.manual_seed(0)
    convolution, pixels = SpaceToDepthConv2d(3, 5, kernel_size, n), nn.Conv2d(3, 5, kernel_size, n)
    pixels.load_state_dict(convolution.state_dict())
    images = torch.randn(2, 3, 12, 24)
    blocks = torch.empty(2, 12 // n, 24 // n, 3 * n * n)
    space_to_depth(images, n, blocks)
    of_blocks, of_pixels = convolution(blocks.movedim(-1, 1)), pixels(images)
    torch.testing.assert_close(of_blocks, of_pixels)
    for output in (of_blocks, of_pixels):
        output.square().sum().backward()
    torch.testing.assert_close(convolution.weight.grad, pixels.weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(convolution.bias.grad, pixels.bias.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("torso", ["a3c", "nature", "a3c_bn", "narrow_8", "max_pool"])
@pytest.mark.parametrize("size", [(44, 52), (45, 52)])
@torch.no_grad()
def test_torso_convolves_the_pixels_of_raw_observations(torso: str, size: tuple[int, int]) -> None:
    """The first layer's weight is of pixels, its inputs come in blocks."""
    spec = EnvSpec((2, *size), np.dtype(np.uint8), A)
    model = build_model(ModelConfig(torso=torso, normalization="scale"), spec, seed=1)
    observation = np.random.default_rng(0).integers(256, size=(B, 2, *size), dtype=np.uint8)
    inputs = torch.empty(B, *model.input_shape)
    model.normalizer.apply(observation, out=inputs)
    first, *others = model.actor.torso.layers
    _, stride, padding = CONV_TORSOS[torso].convolutions[0][1:]
    rows = nn.functional.conv2d(torch.from_numpy(observation) / 255, first.weight, first.bias, stride, padding)
    for layer in others:
        rows = layer(rows)
    torch.testing.assert_close(model.actor.torso(inputs)[0], rows)


@pytest.mark.parametrize("torso", ["a3c", "nature", "a3c_bn", "max_pool"])
def test_channels_are_last_in_memory_through_all_convolutions_and_back(torso: str) -> None:
    """Else it is slow."""
    model = _model(torso, "none")
    with _Images() as images:
        model(*_inputs(model, torso)).value.sum().backward()
    assert {"convolution", "convolution_backward", "threshold_backward"} <= images.keys()
    assert {name for name, are_last in images.items() if not are_last} == set()


class _Images(TorchDispatchMode):
    """Notes for each of three operations whether the channels of all images that it ever got came last in memory."""

    def __enter__(self) -> dict[str, bool]:
        self.noted: dict[str, bool] = {}
        super().__enter__()
        return self.noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        num_images = {"convolution": 1, "convolution_backward": 2, "threshold_backward": 2}.get(name, 0)
        for argument in args[:num_images]:
            if argument.dim() == 4:
                is_last = argument.is_contiguous(memory_format=torch.channels_last)
                self.noted[name] = self.noted.get(name, True) and is_last
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("torso", "count"), [("a3c", 0), ("nature", 1), ("nature_2", 0)])
def test_the_way_back_through_a_stride_is_a_convolution(torso: str, count: int) -> None:
    """Else it takes twice as long; Nature's third convolution has no stride."""
    model = _model(torso, "none")
    with _RowGradients() as wanted:
        model(*_inputs(model, torso)).value.sum().backward()
    assert wanted.count(True) == count


class _RowGradients(TorchDispatchMode):
    """Notes of each convolution's backward operation whether it was to return the gradient of its rows."""

    def __enter__(self) -> list[bool]:
        self.wanted: list[bool] = []
        super().__enter__()
        return self.wanted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "convolution_backward":
            self.wanted.append(args[-1][0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("torso", ["a3c_bn", "max_pool", "mlp"])
def test_other_torsos_keep_no_activations(torso: str) -> None:
    model = _model(torso, "none")
    assert model(*_inputs(model, torso)).activations == ()


@pytest.mark.parametrize("core", ["lstm", "gru"])
@torch.no_grad()
def test_reset_inside_a_sequence_equals_the_initial_state(core: str) -> None:
    model = _model("mlp", core)
    observation, is_first, state = _inputs(model, "mlp")
    output = model(observation, is_first, state)
    for t, b in ((2, 1), (3, 0), (0, 2)):
        rest = observation[t:, b : b + 1]
        fresh = model(rest, torch.zeros(T - t, 1, dtype=torch.bool), model.initial_state(1))
        torch.testing.assert_close(output.policy.logits[t:, b : b + 1], fresh.policy.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.value[t:, b : b + 1], fresh.value, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.state[b : b + 1], fresh.state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("core", ["lstm", "gru"])
@torch.no_grad()
def test_core_computes_what_torchs_own_layer_does(core: str) -> None:
    model = _model("mlp", core)
    features = torch.randn(T, B, 8, generator=torch.Generator().manual_seed(3))
    state = torch.randn(B, model.actor.core.state_size, generator=torch.Generator().manual_seed(4))
    layer = (nn.LSTM if core == "lstm" else nn.GRU)(8, 11)
    layer.load_state_dict({f"{name}_l0": tensor for name, tensor in model.actor.core.cell.state_dict().items()})
    if core == "lstm":
        expected, (hidden, memory) = layer(
            features, (state[None, :, :11].contiguous(), state[None, :, 11:].contiguous())
        )
        last = torch.cat((hidden, memory), dim=-1)[0]
    else:
        expected, hidden = layer(features, state[None])
        last = hidden[0]
    outputs, last_state = model.actor.core(features, torch.zeros(T, B, dtype=torch.bool), state)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(last_state, last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("core", ["lstm", "gru"])
@torch.no_grad()
def test_reset_of_one_environment_leaves_earlier_rows_and_others_alone(core: str) -> None:
    model = _model("mlp", core)
    observation, _, state = _inputs(model, "mlp")
    never = torch.zeros(T, B, dtype=torch.bool)
    one = never.clone()
    one[2, 1] = True
    without, with_reset = model(observation, never, state), model(observation, one, state)
    changed = torch.zeros(T, B, dtype=torch.bool)
    changed[2:, 1] = True
    assert torch.equal((without.value != with_reset.value), changed)


def test_no_gradient_flows_through_a_reset() -> None:
    model = _model("mlp", "lstm")
    observation, is_first, state = _inputs(model, "mlp")
    observation.requires_grad_()
    state.requires_grad_()
    model(observation, is_first, state).value[-1].sum().backward()
    starts = {0: 3, 1: 2, 2: 0}  # environment: first row of the episode that the last row belongs to
    for b, start in starts.items():
        assert observation.grad[:start, b].count_nonzero() == 0
        assert (observation.grad[start:, b] != 0).all()
    assert state.grad.count_nonzero() == 0


def test_state_has_the_width_of_the_core_and_starts_at_zero() -> None:
    widths = {core: _model("mlp", core).initial_state(B) for core in CORES}
    assert {core: state.shape for core, state in widths.items()} == {"none": (B, 0), "lstm": (B, 22), "gru": (B, 11)}
    assert all(state.dtype == torch.float32 and state.count_nonzero() == 0 for state in widths.values())


def test_observations_are_not_changed_by_the_model() -> None:
    for torso in TORSOS:
        model = _model(torso, "none")
        observation, is_first, state = _inputs(model, torso)
        before = observation.clone()
        model(observation, is_first, state).value.sum().backward()
        assert torch.equal(observation, before)


def test_bfloat16_is_of_the_torso_alone() -> None:
    model = _model("a3c", "lstm", torch.bfloat16)
    assert {parameter.dtype for parameter in model.actor.torso.parameters()} == {torch.bfloat16}
    others = (model.actor.core, model.policy, model.value)
    assert {parameter.dtype for module in others for parameter in module.parameters()} == {torch.float32}


def test_waiting_does_not_change_which_dtype_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec = TrainConfig(model=ModelConfig(torso="a3c")), EnvSpec((4, 84, 84), np.dtype(np.uint8), A)
    fastest = fastest_dtype(config, spec)

    def waiting_model(config: ModelConfig, spec: EnvSpec, *, seed: int, dtype: torch.dtype) -> ActorCritic:
        model = build_model(config, spec, seed=seed, dtype=dtype)
        if dtype == getattr(torch, fastest):
            model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
        return model

    monkeypatch.setattr(measure, "build_model", waiting_model)
    assert fastest_dtype(config, spec) == fastest


def test_published_networks_have_their_published_sizes() -> None:
    spec = EnvSpec((4, 84, 84), np.dtype(np.uint8), 6)
    sizes = {torso: FlatParameters(build_model(ModelConfig(torso=torso), spec, seed=0)).size for torso in TORSOS[:2]}
    heads = 7  # 6 logits and the value
    a3c = (4 * 64 + 1) * 16 + (16 * 16 + 1) * 32 + (32 * 9 * 9 + 1) * 256 + (256 + 1) * heads
    nature = (4 * 64 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 9 + 1) * 64 + (64 * 7 * 7 + 1) * 512 + (512 + 1) * heads
    assert sizes == {"a3c": a3c, "nature": nature}


def test_seed_alone_decides_the_initial_parameters() -> None:
    def read(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        return FlatParameters(_model("a3c", "lstm", seed=seed)).read()

    first = read(1, 10)
    assert torch.equal(read(1, 20), first)
    assert not torch.equal(read(2, 10), first)


def test_initial_parameters_do_not_depend_on_the_number_of_threads() -> None:
    parameters = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        parameters.append(
            FlatParameters(build_model(ModelConfig(), EnvSpec((4, 84, 84), np.dtype(np.uint8), A), seed=1))
        )
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(1)
    assert torch.equal(parameters[0].read(), parameters[1].read())


def test_building_a_model_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    _model("mlp", "none")
    assert torch.equal(torch.rand(2), expected)


def test_policy_is_nearly_uniform_at_the_start() -> None:
    model = build_model(ModelConfig(), PIXELS, seed=1)
    observation, is_first, state = _inputs(model, "a3c")
    probabilities = model(observation, is_first, state).policy.logits.softmax(-1)
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / A), atol=0.02, rtol=0)


@pytest.mark.parametrize("torso", ["a3c", "nature"])
def test_convolutions_refuse_vector_observations_in_one_line(torso: str) -> None:
    with pytest.raises(UserError, match=rf"^torso {torso} needs pixels.*\(6,\).*--torso mlp$") as raised:
        build_model(ModelConfig(torso=torso), VECTOR, seed=1)
    assert "\n" not in str(raised.value)


# ---- FlatParameters ----


def _flat(dtype: torch.dtype = torch.float32) -> tuple[ActorCritic, FlatParameters]:
    model = _model("mlp", "lstm", dtype)
    return model, FlatParameters(model)


def _backward(model: ActorCritic) -> None:
    model.zero_grad()
    observation, is_first, state = _inputs(model, "mlp")
    output = model(observation, is_first, state)
    (output.policy.logits.square().sum() + output.value.sum()).backward()


def _expected(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flat_vector_loads_and_reads_back_in_the_order_of_parameters(dtype: torch.dtype) -> None:
    model = _model("mlp", "lstm", dtype)
    before = _expected(list(model.parameters()))
    flat = FlatParameters(model)
    assert torch.equal(flat.read(), before)
    other = torch.arange(flat.size, dtype=torch.float32) / 64
    for factor in (1, -1):  # twice: nothing of the first load may stay
        flat.load(factor * other)
        assert torch.equal(_expected(list(model.parameters())), flat.read())
        if dtype == torch.float32:
            assert torch.equal(flat.read(), factor * other)
        else:
            torch.testing.assert_close(flat.read(), factor * other, atol=0, rtol=2**-8)
    flat.assert_views()


def test_loading_copies() -> None:
    _, flat = _flat()
    vector = torch.ones(flat.size)
    flat.load(vector)
    vector.fill_(2)
    assert (flat.read() == 1).all()
    read = flat.read()
    flat.load(vector)
    assert (read == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flat_gradient_is_that_of_an_ordinary_model(dtype: torch.dtype) -> None:
    ordinary = _model("mlp", "lstm", dtype)
    _backward(ordinary)
    model, flat = _flat(dtype)
    flat.gradient().fill_(7)  # nothing of it may stay
    _backward(model)
    flat.write_gradient()
    gradient = flat.gradient()
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, _expected([parameter.grad for parameter in ordinary.parameters()]))
    assert gradient.count_nonzero() > 0
    flat.assert_views()


def test_flat_gradient_of_parameters_without_one_is_0() -> None:
    model, flat = _flat()
    frozen = [name for name, _ in model.named_parameters() if name.startswith("actor.torso")]
    model.actor.torso.requires_grad_(False)
    flat.gradient().fill_(7)
    _backward(model)
    flat.write_gradient()
    parts = torch.split(flat.gradient(), [parameter.numel() for parameter in model.parameters()])
    assert frozen
    for (name, _), part in zip(model.named_parameters(), parts, strict=True):
        assert bool((part == 0).all()) == (name in frozen), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_assert_views_notices_a_parameter_that_left(dtype: torch.dtype) -> None:
    model, flat = _flat(dtype)
    flat.assert_views()
    for parameter in model.parameters():
        home = parameter.data
        parameter.data = home.clone()
        with pytest.raises(AssertionError, match="parameter left"):
            flat.assert_views()
        parameter.data = home
    flat.assert_views()


def test_a_step_on_the_flat_vector_is_a_step_of_every_parameter() -> None:
    model, flat = _flat()
    ordinary = _model("mlp", "lstm")
    optimizer = torch.optim.SGD(ordinary.parameters(), lr=0.1)
    for _ in range(2):
        _backward(ordinary)
        optimizer.step()
        _backward(model)
        flat.write_gradient()
        flat.load(flat.read() - 0.1 * flat.gradient())
    torch.testing.assert_close(flat.read(), nn.utils.parameters_to_vector(ordinary.parameters()).detach())

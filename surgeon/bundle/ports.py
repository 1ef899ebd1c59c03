"""The inputs and outputs of each artifact: the contract of a bundle, in one table. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.bundle.manifest import Artifact, Defaults, GateSite, Port, Recipe

BATCH = "N"
FILES = {
    "onnx": ("pullback.onnx", "ascent_step.onnx", "ascent.onnx"),
    "torchscript": ("pullback.ts", "ascent.ts"),
}
"""The artifacts of each format."""

RESERVED = frozenset(
    (
        *("input", "cotangent", "temperature", "origin", "step_size", "radius", "steps", "extra_inputs"),
        *("output", "pullback", "perturbed", "score", "scores", "climbed", "none", "first_axis", "self", "torch"),
        "gradient",
    )
)
"""Names of values in the artifacts. A parameter of the network may have one, another input of it may not."""

GATES = "gates.onnx"
"""The artifact with the inputs of the gates and the cotangents there, where a recipe asks for it."""

PRE_ACTIVATION, SOFT, HARD, GATE_GAP = "pre_activation", "soft", "hard", "gate_gap"
"""Its outputs for a gate, in this order; a slash and the gate's node follow in an output's name."""

_SHOWN = {
    PRE_ACTIVATION: "the gate's input z, counted from the edge where it opens; of a pool its input",
    SOFT: "the cotangent that arrives at its output under soft gates and pools",
    HARD: "the cotangent that arrives at its output where all of them are hard",
    GATE_GAP: "mean of |soft - hard| of the gate, over its units and the batch",
}

_COTANGENTS = {
    "logit": "weights of the outputs whose sum is climbed: one-hot for one class",
    "cross-entropy": "target distribution over the classes",
}


def artifacts(
    formats: Sequence[str],
    recipe: Recipe,
    defaults: Defaults,
    temperature: float | tuple[float, ...] | None,
    input_shape: Sequence[int | str],
    output_shape: Sequence[int | str],
    extra_inputs: Sequence[Port] = (),
) -> dict[str, Artifact]:
    """All artifacts of `formats`, by file name; shapes are those of one sample, without the batch.

    `extra_inputs` are the network's further inputs, which take no cotangent. `temperature` is the default of that
    input: one number, or one for each gate and pool; None where no artifact takes it.
    """
    image: tuple[int | str, ...] = (BATCH, *input_shape)
    output: tuple[int | str, ...] = (BATCH, *output_shape)
    given = Port("input", "float32", image, "the images")
    at_output = Port("cotangent", "float32", output, "cotangent at the output")
    climbed = (
        [Port("cotangent", "float32", output, _COTANGENTS[recipe.objective])] if recipe.objective in _COTANGENTS else []
    )
    uses_temperature = [] if temperature is None else [_temperature(temperature)]
    scalars = [
        *uses_temperature,
        Port("step_size", "float32", (), "length of a step; negative descends", defaults.step_size),
        Port("radius", "float32", (), "largest norm of what is added; inf for no limit", defaults.radius),
    ]
    steps = Port("steps", "int64", (), "number of steps, at least 1", defaults.steps)
    what = "the network's own output" if not recipe.at else f"the output of the layer {recipe.at[0]}"
    if len(recipe.at) > 1:
        what = "the outputs of the layers, flattened, one after the other,"
    plain_output = Port("output", "float32", output, what.removesuffix(","))
    pullback = Port("pullback", "float32", image, "the cotangent, pulled back to the input")
    perturbed = Port("perturbed", "float32", image, "the images after the ascent")
    ports = {
        "pullback": ([given, *extra_inputs, at_output, *uses_temperature], [plain_output, pullback]),
        "ascent_step": (
            [
                *(given, Port("origin", "float32", image, "the images that the ascent started from"), *extra_inputs),
                *(*climbed, *scalars),
            ],
            [
                Port("perturbed", "float32", image, "the images after this step"),
                Port("output", "float32", output, f"{what} before this step"),
                pullback,
            ],
        ),
        "ascent": (
            [given, *extra_inputs, *climbed, *scalars, steps],
            [
                perturbed,
                Port("output", "float32", output, f"{what} for the perturbed images"),
                Port("pullback", "float32", image, "the pullback of the last step"),
                Port("score", "float32", ("steps + 1", BATCH), "the objective before each step and after the last"),
            ],
        ),
    }
    return {
        name: Artifact(kind, tuple(ports[name.partition(".")[0]][0]), tuple(ports[name.partition(".")[0]][1]))
        for kind in formats
        for name in FILES[kind]
    }


def gates(pullback: Artifact, shown: Sequence[tuple[GateSite, Sequence[int | str]]]) -> Artifact:
    """`gates.onnx`, with the inputs of `pullback.onnx`, for soft gates and pools and the shapes of their outputs."""
    gradient = Port("gradient", "float32", pullback.outputs[1].shape, "the pullback where every soft gate is hard")
    outputs = [*pullback.outputs, gradient]
    for gate, shape in shown:
        shapes = {PRE_ACTIVATION: gate.shape if gate.kind == "pool" else shape, SOFT: shape, HARD: shape, GATE_GAP: ()}
        kinds = (PRE_ACTIVATION, SOFT, HARD) if gate.kind == "pool" else (PRE_ACTIVATION, SOFT, HARD, GATE_GAP)
        outputs += [Port(f"{kind}/{gate.node}", "float32", tuple(shapes[kind]), _SHOWN[kind]) for kind in kinds]
    return Artifact("onnx", pullback.inputs, tuple(outputs))


def _temperature(default: float | tuple[float, ...]) -> Port:
    if isinstance(default, tuple):
        meaning = "softness T > 0 of each gate and pool, in the manifest's order; those that are not soft read nothing"
        return Port("temperature", "float32", (len(default),), meaning, default)
    return Port("temperature", "float32", (), "softness T > 0 of gates and pools", default)

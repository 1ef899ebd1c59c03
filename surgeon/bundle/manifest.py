"""The manifest of a bundle, `manifest.json`, as dataclasses. Torch-free.

Each ONNX file holds the same facts, except file hashes and verification, as JSON in its `metadata_props` under the key
`surgeon`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from surgeon.bundle.choices import RecordedName, check_fields, hints
from surgeon.bundle.scalars import check_scalar
from surgeon.errors import SurgeonError

MANIFEST = "manifest.json"
SCHEMA = 3
"""Version of the manifest's layout; another version is refused, not guessed at."""

IN_FILES = ("schema", "model", "recipe", "defaults", "image", "labels", "gates", "layers", "extra_inputs")
"""The fields of `Manifest` that each ONNX file repeats."""


@dataclass(frozen=True)
class Model:
    """Where the network comes from."""

    name: str
    source: str  # the argument of `surgeon export`: a name, `package.module:factory` or a file
    weights: str  # a file's name, a torchvision weights name, or "random"
    licence: str  # of the weights, or "unknown"
    parameters: int
    input: str | None = None  # name of the input in the source file; the artifacts call theirs `input`
    output: str | None = None  # name of the output there


Edges = Literal["lower", "both"]
Objective = Literal["logit", "cross-entropy", "energy"]
Step = Literal["unit", "relative", "raw"]
Norm = Literal["1", "2", "inf"]
Precision = Literal["fp32", "fp16"]
OPSETS = range(18, 24)
"""The ONNX operator sets that a bundle may be written in."""

GATE_NAMES: list[str] = []
"""Names of the gate policies: each class in `surgeon.conversion.gates` adds its own. Empty until that is imported."""


@dataclass(frozen=True)
class Recipe:
    """Choices that are baked into the artifacts at export. Raises SurgeonError for a value that is none of them."""

    gate: Annotated[str, GATE_NAMES] = "soft"  # what the backward pass puts in the place of a ReLU's derivative
    pool: Literal["", "soft", "hard"] = ""  # the backward of max pooling; "": soft under the soft gate, hard otherwise
    gate_scope: Literal["all", "modules"] = "all"  # modules: functional ReLUs keep the hard gate, as in the reference
    edges: Edges = "lower"  # which edges of ReLU6, hardtanh and clamp are softened
    at: tuple[str, ...] = ()  # the layers whose outputs take the cotangent; none: the network's own output does
    objective: Objective = "logit"
    step: Step = "unit"  # unit: g/|g|; relative: g/|g| * |x|; raw: g
    norm: Norm = "2"  # the norm of step and radius
    temperatures: tuple[tuple[str, float], ...] = ()  # (gate's name or pattern, its T): see surgeon.bundle.temperatures
    temperature_input: Literal["scalar", "per-gate"] = "scalar"  # one T for all; or one per gate, as `Manifest.gates`
    scalars: Literal["optional", "required"] = "optional"  # whether ONNX files hold defaults for temperature and so on
    gate_outputs: bool = False  # whether gates.onnx is written, which shows what the gates do
    dynamic_size: bool = False  # whether height and width of an input [C, H, W] are free, as the batch is
    precision: Precision = "fp32"  # of the arithmetic
    weights_dtype: Precision = "fp32"  # of the weights in the ONNX files
    layout: Literal["blocked", "plain", "tuned"] = "blocked"  # see surgeon.runtime.tuning
    opset: int = 18

    def __post_init__(self) -> None:
        if isinstance(self.at, str):
            raise SurgeonError(f"at is the text {self.at!r}, not a tuple of layers", f"Write at=({self.at!r},)")
        check_fields(self)
        for _, temperature in self.temperatures:
            check_scalar("temperature", temperature)
        if self.opset not in OPSETS:
            raise SurgeonError(f"opset cannot be {self.opset}", f"Choose {OPSETS[0]} to {OPSETS[-1]}")
        if not self.pool:
            object.__setattr__(self, "pool", "soft" if self.gate == "soft" else "hard")


@dataclass(frozen=True)
class Defaults:
    """Values of the runtime inputs that a caller may leave out. Raises SurgeonError for one that cannot be fed."""

    temperature: float = 0.3
    step_size: float = 20.0  # in units of `Recipe.norm` over the whole image in its value range
    radius: float = 100.0  # likewise; inf switches the projection off
    steps: int = 5

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in vars(self).items():
            check_scalar(name, value)


@dataclass(frozen=True)
class Image:
    """How a photo becomes an input: decode to RGB, resize, centre crop, scale [0, 255] to `range`.

    A square photo is resized to height x width at once. `mean` and `std` are applied inside the artifact, to pixels in
    [0, 1]; the manifest states them so that nobody applies them twice.
    """

    channels: int = 3
    height: int = 224
    width: int = 224
    range: tuple[float, float] = (-1.0, 1.0)
    margin: float = 0.0  # an ascent clamps to [low - margin, high + margin]; inf switches the clamp off
    resize: int = 256  # the shorter side, before the centre crop
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels_last: bool = False  # of the network inside; the artifact takes [N, C, H, W] and turns it


@dataclass(frozen=True)
class Port:
    """One input or output of an artifact. `shape` holds integers, and names for dimensions that may vary."""

    name: str
    dtype: str  # numpy's name: float32, int64
    shape: tuple[int | str, ...]
    meaning: str
    default: float | int | tuple[float, ...] | None = None


@dataclass(frozen=True)
class Artifact:
    """One file that computes something, with its inputs and outputs in order."""

    format: str  # onnx, torchscript
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class File:
    """A file of the bundle, by content."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class GateSite:
    """One gate or pool of the network, and the rule that its backward follows."""

    node: str  # name of the forward node in the graph
    module: str  # dotted name in the source module; "" for the root
    op: str  # ATen operator, such as aten.relu.default
    kind: str  # gate, pool
    rule: str  # name of the gate policy
    shape: tuple[int | str, ...]  # of the pre-activation
    temperature: float | None = None  # its own T, fixed (the default of a per-gate input's entry); None: the input's
    soft: bool | None = None  # whether the rule reads a temperature; None: whether it is `soft`

    def __post_init__(self) -> None:
        if self.soft is None:
            object.__setattr__(self, "soft", self.rule == "soft")


@dataclass(frozen=True)
class Layer:
    """A layer that takes a cotangent. Several layers share the output: theirs, flattened, one after the other."""

    name: str
    kind: str  # module, entry (of the network's output), node
    shape: tuple[int | str, ...]  # of one sample's output
    start: int = 0  # where its slice of that output begins

    @property
    def size(self) -> int:
        """Length of the slice."""
        return math.prod(size for size in self.shape if isinstance(size, int))


@dataclass(frozen=True)
class Comparison:
    """One line of the verification report: a quantity of an artifact, and its error against autograd."""

    artifact: str  # file name
    quantity: str  # output, pullback, perturbed, score
    condition: str  # such as "batch 3, T 0.7"
    error: float  # relative L2
    tolerance: float
    provider: str  # such as CPUExecutionProvider, or torch for TorchScript

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Manifest:
    """All facts about a bundle."""

    model: Model
    recipe: Recipe
    defaults: Defaults
    image: Image | None  # None where the input is not a picture
    labels: tuple[str, ...] | None
    gates: tuple[GateSite, ...]
    extra_inputs: tuple[Port, ...] = ()  # the network's further inputs; an artifact takes those that it reads
    layers: tuple[Layer, ...] = ()  # those of `Recipe.at`, in order
    artifacts: dict[str, Artifact] = field(default_factory=dict)  # by file name
    files: dict[str, File] = field(default_factory=dict)  # by file name; the manifest itself is not among them
    versions: dict[str, str] = field(default_factory=dict)
    passes: dict[str, int] = field(
        default_factory=dict
    )  # those of surgeon.conversion.passes.optimise and surgeon.runtime.tuning; how often
    verification: tuple[Comparison, ...] = ()
    schema: int = SCHEMA

    @property
    def default_temperature(self) -> float | tuple[float, ...]:
        """The default of the artifacts' input `temperature`: one number, or one for each of `gates`."""
        return default_temperature(self.recipe, self.defaults, self.gates)

    @property
    def input_defaults(self) -> dict[str, Any]:
        """The default of every input that a caller may leave out, by name."""
        return {**dataclasses.asdict(self.defaults), "temperature": self.default_temperature}

    @property
    def required_scalars(self) -> dict[str, Any]:
        """`input_defaults` where the ONNX files hold no defaults, so that a caller has to give them; else nothing."""
        return self.input_defaults if self.recipe.scalars == "required" else {}

    def gate_temperatures(self, temperature: float | Sequence[float] | None = None) -> tuple[float, ...]:
        """T of each of `gates` for the input `temperature` that a caller gives (None: its default)."""
        temperature = self.default_temperature if temperature is None else temperature
        if self.recipe.temperature_input == "per-gate":
            return tuple(temperature) if isinstance(temperature, Sequence) else (temperature,) * len(self.gates)
        assert not isinstance(temperature, Sequence)
        return tuple(temperature if gate.temperature is None else gate.temperature for gate in self.gates)

    def facts(self) -> dict[str, Any]:
        """The manifest as plain data that strict JSON can hold: infinite numbers are strings, tuples are lists."""
        return typing.cast("dict[str, Any]", strict(dataclasses.asdict(self)))

    def file_facts(self) -> str:
        """The facts that each ONNX file holds, as JSON: those that are known before all files are written."""
        facts = self.facts()
        return json.dumps({key: facts[key] for key in IN_FILES}, separators=(",", ":"), allow_nan=False)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(self.facts(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises SurgeonError where the text is not JSON, has another schema version, or lacks or adds a field.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise SurgeonError(f"the manifest is not JSON ({error})", "Export the bundle again") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise SurgeonError(
                f"the bundle has schema version {schema}, and this surgeon reads version {SCHEMA}",
                "Export the bundle again with this version",
            )
        try:
            return typing.cast("Manifest", _build(cls, data))
        except (TypeError, ValueError, KeyError, SurgeonError) as error:
            raise SurgeonError(f"the manifest is damaged ({error})", "Export the bundle again") from error


def default_temperature(recipe: Recipe, defaults: Defaults, gates: Sequence[GateSite]) -> float | tuple[float, ...]:
    """The default of the artifacts' input `temperature`: one number, or one for each of `gates`."""
    if recipe.temperature_input == "scalar":
        return defaults.temperature
    return tuple(defaults.temperature if gate.temperature is None else gate.temperature for gate in gates)


def strict(value: Any) -> Any:
    """`value` as strict JSON can hold it: infinite numbers and NaN, which JSON lacks, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def _build(kind: Any, data: Any) -> Any:
    """`data`, as JSON gave it, as a value of the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1:
            return _build(options[0], data)
        if float in options and data in ("inf", "-inf"):
            return float(data)
        if isinstance(data, list):
            options = [option for option in options if typing.get_origin(option) is tuple]
            return _build(options[0] if options else None, data)
        if type(data) not in options:
            raise TypeError(f"{data!r} is none of {options}")
        return data
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        known = hints(kind)
        return kind(**{name: _build(known[name], item) for name, item in data.items()})
    if origin is Annotated:
        return RecordedName(_build(arguments[0], data))
    if origin is Literal:
        if data not in arguments:
            raise TypeError(f"{data!r} is none of {', '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        items = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(item, value) for item, value in zip(items, data, strict=True))
    if origin is dict:
        return {key: _build(arguments[1], value) for key, value in data.items()}
    if kind is float:
        return float(data)
    if not isinstance(data, kind):
        raise TypeError(f"{data!r} is not {kind.__name__}")
    return data

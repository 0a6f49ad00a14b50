"""The bundle's contract: the schema of `manifest.json`, and nothing about how a bundle is made or run.

`manifest.json` is the only file a reader must understand. Unknown keys are rejected: a reader that does not
know a key cannot know whether it may be ignored. The Python and the Android readers share one golden file
(`tests/golden/manifest.json`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION: Literal[1] = 1

TilingRule = Literal["relaxed", "largest-effective", "closest-ratio", "single", "idefics3"]
Resampling = Literal["nearest", "bilinear", "bicubic", "lanczos"]
BackendName = Literal["executorch", "onnx"]
KVFormat = Literal["int8", "float"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageRule(_Strict):
    """How a picture becomes tiles, and tiles become tokens in the prompt."""

    tiling: TilingRule
    tile_size: Positive
    """Side of a square tile in pixels."""
    max_tiles: Positive
    """Upper bound on tiles of the grid, the thumbnail not counted. 1 with `single`."""
    grids: tuple[tuple[int, int], ...] = ()
    """Candidate (columns, rows), for the rules that choose among candidates."""
    alpha: float = 0.1
    """`relaxed` only: how much more effective resolution a larger grid must bring (BlueLM-V-3B, Algorithm 1)."""
    thumbnail: Literal["none", "first", "last"] = "none"
    """Where the whole picture, resized to one tile, stands among the tiles. Left out when the grid is 1x1."""
    longest_edge: int | None = None
    """`idefics3` only: the picture is first resized so that its longer side has this many pixels."""
    resampling: Resampling = "bicubic"
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    background: tuple[int, int, int] = (0, 0, 0)
    """Colour of the canvas outside the picture, and under transparent pixels."""
    max_pixels: Positive = 100_000_000
    """A picture with more pixels than this is refused before it is decoded."""

    tokens_per_tile: Positive
    """Embeddings the vision encoder and projector give for one tile."""
    image_token: str
    """The token that stands once for each embedding in the tokenized prompt."""
    placeholder: str
    """What the chat template writes for one picture; replaced by the expansion below."""
    tile_before: str = ""
    """Text before each grid tile's tokens; `{row}` and `{col}` count from 1."""
    row_end: str = ""
    """Text after the last tile of each grid row."""
    thumbnail_before: str = ""
    """Text before the thumbnail's tokens when there is a grid beside it."""
    single_before: str = ""
    """Text before the only tile's tokens when the grid is 1x1."""
    after: str = ""
    """Text after a picture's last token."""


class Chat(_Strict):
    """How messages become a prompt, and where an answer ends."""

    template: str
    """Jinja2 source, with transformers' variables: messages, add_generation_prompt, bos_token, eos_token."""
    bos_token: str | None = None
    eos_token: str | None = None
    add_special_tokens: bool = False
    """Whether the tokenizer's own post-processor adds its tokens to the rendered prompt."""
    stop_ids: tuple[int, ...]
    """Token ids that end an answer; not shown."""
    multi_turn: bool = True
    """False for models whose prompt holds one question only."""


class SamplingDefaults(_Strict):
    """generation_config.json's defaults; greedy where it says nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Sizes(_Strict):
    """Dimensions a reader needs to allocate and to check a graph's inputs."""

    vocab_size: Positive
    width: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    context: Positive
    """Cache length: prompt and answer together, in tokens."""
    chunk: Positive
    """Prompt tokens the engine gives to the decoder at a time."""
    max_chunk: Positive
    """Most tokens the decoder takes in one call."""
    parameters: Positive
    vision_features: tuple[int, int] | None = None
    """(tokens, width) of the vision encoder's output for one tile, before the projector."""


class PartQuantization(_Strict):
    """What became of one part's weights."""

    bits: Literal[2, 3, 4, 8, 32]
    stored_bits: Literal[4] | None = None
    """Bits that each weight takes, where that is more than its grid has: three travel as four."""
    group: int | None
    """Weights that share a scale; None is one scale per output row."""
    symmetric: bool = True
    parameters: int
    bytes: int
    """Packed weights and their scales, as the plain grid counts them; a graph file adds its own padding."""
    exceptions: tuple[str, ...] = ()
    """Matrices in another format than the part's, one line each: name, shape, what they got and why."""


class SavedRecipe(_Strict):
    """What was asked of the exporter; with the same checkpoint it gives the same bundle."""

    backends: tuple[BackendName, ...]
    method: str = "round"
    smooth: bool = False
    rotate: bool = False
    calibration: str | None = None
    """sha256 of the set that activations were measured on; None where none was needed."""
    bits: int
    layer_bits: tuple[tuple[str, int], ...] = ()
    group: int
    head_bits: int
    vision_bits: int
    embedding_bits: int
    context: int
    chunk: int
    max_portable: float
    tau: float | None = None
    """Of `Sparsity`."""


class SparsityEffect(_Strict):
    """What it did to one prompt when the bundle was made."""

    backend: BackendName
    prompt_tokens: int
    image_tokens: int
    """Of these, a photograph's."""
    kept: tuple[int, ...]
    """Tokens of the prompt that each layer kept."""
    divergence: float
    """Kullback-Leibler, in nats, of the answer's first token from what it is where all are kept."""


class Sparsity(_Strict):
    """That each layer keeps the tokens of a prompt that matter to it alone (ZipVL)."""

    method: Literal["zipvl-1"] = "zipvl-1"
    """Name and number of the way tokens are chosen."""
    tau: Annotated[float, Field(gt=0, le=1)]
    """Share of the attention that the chosen tokens hold at least."""
    least_tokens: Annotated[int, Field(gt=128)]
    """Of a prompt, or of a later turn of one: a shorter one is kept whole, since choosing would take longer."""
    effect: SparsityEffect | None = None
    """Measured at export; None where tau keeps all, or where no prompt at hand was long enough."""

    @property
    def leaves_out(self) -> bool:
        """Whether anything can be: programs take tau in float32, which makes 1 of what is very near."""
        return self.tau < 1 - 2**-25


class Quantization(_Strict):
    """The recipe, and what it gave."""

    method: str
    """Name and number of the way weights were rounded: another number is another grid."""
    recipe: SavedRecipe
    kv: KVFormat
    kv_scales: str | None = None
    """File with the static scales of an int8 cache (NumPy's .npz: key_0, value_0, …), where a backend uses them."""
    parts: dict[Literal["vision", "projector", "embedding", "decoder", "head"], PartQuantization]


class Tensor(_Strict):
    """One input or output of a graph; a string dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Strict):
    """One program: a method of a .pte, or an ONNX file."""

    file: str
    method: str | None = None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: int
    delegated: int
    """Nodes that the backend's fast kernels took (XNNPACK, or ONNX Runtime contrib operators for linears)."""
    not_delegated: dict[str, int] = {}
    """Operators left to portable kernels, with their counts."""


class BackendGraphs(_Strict):
    """The programs of one backend, by role."""

    vision: Graph | None = None
    embedding: Graph | None = None
    decoder: Graph
    files: tuple[str, ...]
    """All files this backend needs."""


class FileEntry(_Strict):
    """Size and hash of one file of the bundle."""

    size: int
    sha256: Sha256


class BackendMemory(_Strict):
    """What one backend needs, in bytes."""

    kv_cache: int
    peak: int
    """All weights, the cache, and the largest activations of one pass."""


class MemoryEstimate(_Strict):
    """What a device needs, in bytes, derived from sizes (not measured)."""

    weights: dict[str, int]
    """Per part."""
    kv_cache: int
    """Of the backend that needs most."""
    peak: int
    """Of the backend that needs most."""
    backends: dict[BackendName, BackendMemory] = {}
    """Per backend: each keeps its cache in a format of its own."""


class GateScore(_Strict):
    """How one backend's programs answered, shares from 0 to 1."""

    exact_match: Share
    character_accuracy: Share
    """Mean of 1 - edit distance / length of the longer of both strings."""


class Gate(_Strict):
    """An evaluation set that the programs had to answer before the bundle got its name."""

    set_sha256: Sha256
    """Of the JSONL file."""
    questions: Positive
    accuracy: Share
    """Least exact match that was asked for."""
    backends: dict[BackendName, GateScore]


class Manifest(_Strict):
    """`manifest.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    family: str
    sizes: Sizes
    image: ImageRule | None = None
    chat: Chat
    sampling: SamplingDefaults = SamplingDefaults()
    causal: bool = True
    """False: a prompt's tokens attend to all of it, so it is prefilled in one call, never in chunks."""
    quantization: Quantization
    sparsity: Sparsity | None = None
    """None: every token of a prompt is kept."""
    backends: dict[BackendName, BackendGraphs]
    memory: MemoryEstimate
    gate: Gate | None = None
    """None where the export was asked for none."""
    versions: dict[str, str]
    """Tools that made the bundle, so that a mismatch at run time can be named."""
    files: dict[str, FileEntry]

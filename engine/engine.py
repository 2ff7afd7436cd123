"""The engine: rows in, one outcome a row out. Server, trainer's golden check, bulk scoring and benchmarks all use it.

tokenise -> plan -> encoder + LoRA bank -> per-adapter head -> labels
"""

import math
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from adapters.base_model import BaseModelFiles
from adapters.errors import InferenceFailed, InvalidText, TextTooLong, UnknownAdapter, VerificationError
from adapters.reference import AdapterId
from adapters.verify import GOLDEN_TOLERANCE, Adapter, BaseLayout, LoraPair, read_adapter
from engine.bank import LoraBank, saved_modules_refusal
from engine.buckets import BucketedPass
from engine.encoder import load_encoder
from engine.lean import lean_encoder
from engine.plan import plan
from engine.rows import Answer, BatchStats, Outcome, Report, Row
from engine.slots import Slots
from engine.tokenise import Tokeniser, Tokens

MAX_LABELS = 1024
"""Widest label set: every slot's head is padded to the widest one seen, so one adapter could cost all of them."""

_SLOTS_BESIDE = 2
"""Slots of the bank beside the capacity: the base's, and the spare one in which newcomers are proved."""

MAX_WINDOWS = 64
"""Most windows of one text; a longer one is refused, for one request could keep all others waiting."""

_HALF_TOLERANCE = 0.05
"""Golden tolerance where the encoder runs in bf16 or fp16: those keep 8 to 11 bits, training computed in fp32."""


@dataclass(frozen=True, slots=True)
class _Work:
    """A row that will run, or one window of it: its place in the request, its adapter, slot and token ids."""

    at: int
    adapter: "_Facts"
    slot: int
    ids: list[int]
    truncated: bool = False
    kept: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Facts:
    """What rows need of a resident adapter; its weights are in the bank alone."""

    id: AdapterId
    labels: tuple[str, ...]
    max_tokens: int
    truncation_side: Literal["left", "right"]
    temperature: float
    multi_label: bool
    has_lora: bool

    @classmethod
    def of(cls, adapter: Adapter) -> "_Facts":
        return cls(
            adapter.id,
            adapter.labels,
            adapter.max_tokens,
            adapter.truncation_side,
            adapter.temperature,
            adapter.multi_label,
            bool(adapter.lora),
        )


class Engine:
    """One base model, its bank, and the adapters resident in it.

    Methods may be called from several threads: an adapter is read and proved while batches of others run.
    """

    def __init__(
        self,
        base: BaseModelFiles,
        *,
        capacity: int = 64,
        bank_bytes: int | None = None,
        max_rank: int = 64,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        token_budget: int = 8192,
        lean: bool = True,
        buckets: bool | None = None,
    ) -> None:
        """
        Args:
            capacity: adapters resident at once, >= 1.
            bank_bytes: memory that the bank may take; where slots grow (a larger rank, a further module), fewer fit.
            max_rank: largest LoRA rank taken.
            device: a torch device.
            dtype: of the encoder; fp32 on a CPU and bf16 elsewhere by default. Heads are always fp32.
            token_budget: most padded tokens in one forward pass.
            lean: use the lean pass where the architecture has one; False is for comparing.
            buckets: run the lean pass in a few static shapes. By default on CUDA alone, which replays each as a graph.

        Raises:
            BaseModelError: the base cannot be loaded.
        """
        self._dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        encoder = load_encoder(base, device=device, dtype=self._dtype)
        self._model = encoder.model
        self._device = torch.device(device)
        on_cuda = self._device.type == "cuda"
        self._load_stream: torch.cuda.Stream | None = None
        if on_cuda:
            self._load_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._tokenise = Tokeniser(encoder.tokenizer)
        self._bank = LoraBank(encoder.model, capacity + _SLOTS_BESIDE, encoder.layout.output)
        self._bank_bytes = bank_bytes
        self._lean = lean_encoder(encoder.model, self._bank) if lean else None
        self._lean_fits = self._lean is not None
        self._buckets: BucketedPass | None = None
        if self._lean is not None and (on_cuda if buckets is None else buckets):
            self._buckets = BucketedPass(self._lean, self._bank, device=self._device, pad_id=self._tokenise.pad_id)
        self._max_rank = max_rank
        self._token_budget = token_budget
        self._attaching = threading.Lock()
        self._turn = threading.Condition(threading.RLock())
        """Held for a batch, and for whatever must not happen during one."""
        self._slots = Slots(capacity)
        self._facts: dict[AdapterId, _Facts] = {}
        self._proved: weakref.WeakSet[Adapter] = weakref.WeakSet()
        self.layout: BaseLayout = encoder.layout

    @property
    def capacity(self) -> int:
        """Adapters that can be resident at once; falls where a memory limit is set and slots grow."""
        return self._slots.capacity

    @property
    def resident(self) -> tuple[AdapterId, ...]:
        """Adapters that can answer now, least recently used first."""
        with self._turn:
            return self._slots.holders()

    @property
    def pinned(self) -> frozenset[AdapterId]:
        with self._turn:
            return self._slots.pinned

    def read(self, directory: Path, adapter: AdapterId) -> Adapter:
        """Read and check a directory. Slow, changes nothing, may run beside `classify`.

        Raises:
            VerificationError: it must not be served.
        """
        read = read_adapter(directory, adapter, self.layout, max_rank=self._max_rank)
        if len(read.labels) > MAX_LABELS:
            raise VerificationError(str(adapter), "labels", f"at most {MAX_LABELS}", str(len(read.labels)))
        refusal = saved_modules_refusal(self._model, read.saved)
        if refusal is not None:
            raise VerificationError(str(adapter), "saved modules", "linear modules and layer norms", refusal)
        return read if self._load_stream is None else _pinned(read)

    def attach(self, adapter: Adapter, *, awaited: bool = False) -> None:
        """Make an adapter resident once its golden texts give its golden logits; the least recently used makes room.

        Batches of other adapters run meanwhile: they are kept out only while tensors are copied. An object that has
        given its golden logits here before is not asked again.

        Args:
            awaited: it may not make room for others until it was used or `release` was called; while all others are
                awaited or pinned, this call waits.

        Raises:
            VerificationError: the golden logits differ, or it takes more memory than there is; the adapter is not
                resident then, and nobody was evicted.
            BankFull: every slot is pinned.
        """
        with self._attaching, torch.cuda.stream(self._load_stream):
            with self._turn:
                if adapter.id in self._slots:
                    return
                self._make_fit(adapter)
                slot = self._slots.spare()
                self._bank.write(slot, adapter)
                if self._load_stream is not None:
                    # Batches run on another stream, and slots may have been moved for this one.
                    self._load_stream.synchronize()
                if self._lean is not None:
                    self._lean_fits = self._lean.refresh()
            if adapter not in self._proved:
                self._check_golden(adapter, slot)
                self._proved.add(adapter)
            with self._turn:
                self._turn.wait_for(self._slots.has_room)
                gone = self._slots.settle(adapter.id, slot, awaited=awaited)
                if gone is not None:
                    del self._facts[gone]
                self._facts[adapter.id] = _Facts.of(adapter)

    def release(self, adapter: AdapterId) -> None:
        """Nobody waits for an adapter that was attached as awaited; it may make room."""
        with self._turn:
            self._slots.release(adapter)
            self._turn.notify_all()

    def pin(self, adapter: AdapterId) -> None:
        """Keep a resident adapter resident whatever else is used.

        Raises:
            UnknownAdapter: it is not resident.
        """
        with self._turn:
            if adapter not in self._slots:
                raise UnknownAdapter(str(adapter))
            self._slots.pin(adapter)

    def unpin(self, adapter: AdapterId) -> None:
        """Let an adapter make room again; nothing happens if it was not pinned."""
        with self._turn:
            self._slots.unpin(adapter)
            self._turn.notify_all()

    def detach(self, adapter: AdapterId) -> None:
        """Free an adapter's slot; nothing happens if it is not resident."""
        with self._turn:
            if self._slots.drop(adapter):
                del self._facts[adapter]
                self._turn.notify_all()

    def verify(self, directory: Path, adapter: AdapterId) -> Adapter:
        """Run every check on a directory, the golden logits too, and keep nothing.

        Raises:
            VerificationError: it must not be served.
        """
        read = self.read(directory, adapter)
        self.attach(read)
        self.detach(adapter)
        return read

    @torch.inference_mode()
    def classify(self, rows: Sequence[Row], report: Report | None = None) -> tuple[list[Outcome], BatchStats]:
        """One outcome a row, in order; what is wrong with one row never touches another.

        A row whose adapter is not resident gets `UnknownAdapter`, one that declines truncation `TextTooLong`.

        Args:
            report: is told of outcomes as they are there, each once, with the statistics so far: short rows come out
                of a batch well before long ones.
        """
        with self._turn:
            started = time.perf_counter()
            outcomes: list[Outcome | None] = [None] * len(rows)
            work = self._prepare(rows, outcomes)
            tokenised = time.perf_counter()
            lengths = [len(item.ids) for item in work]
            wanted = lengths if self._buckets is None else [self._buckets.length(length) for length in lengths]
            batches = plan(wanted, token_budget=self._token_budget, pass_cost_tokens=PASS_COST_TOKENS)
            stats = BatchStats(len(work), 0, 0, 0, tokenised - started, 0.0)
            pooling = _Pooling(work)
            fresh = [(at, outcome) for at, outcome in enumerate(outcomes) if outcome is not None]
            for batch in batches:
                part = [work[at] for at in batch.rows]
                for at, pooled in pooling.add(part, self._run(part)):
                    outcomes[at] = pooled
                    fresh.append((at, pooled))
                stats = BatchStats(
                    rows=len(work),
                    micro_batches=stats.micro_batches + 1,
                    tokens=stats.tokens + sum(len(item.ids) for item in part),
                    padded_tokens=stats.padded_tokens + batch.padded_tokens,
                    tokenise_s=stats.tokenise_s,
                    forward_s=time.perf_counter() - tokenised,
                )
                if report is not None and batch is not batches[-1]:
                    report(fresh, stats)
                    fresh = []
            self._turn.notify_all()  # what was awaited has been used now
        if report is not None:
            report(fresh, stats)
        found = [outcome for outcome in outcomes if outcome is not None]
        assert len(found) == len(rows)
        return found, stats

    def slot(self, adapter: AdapterId) -> int:
        """The bank's slot of a resident adapter; KeyError if it is not resident."""
        with self._turn:
            return self._slots.slot(adapter)

    def bytes_per_adapter(self) -> int:
        """Memory that a resident adapter takes in the bank."""
        return self._bank.bytes_per_slot()

    def check_integrity(self) -> None:
        """AssertionError if bank, slots and lean pass do not hold together; for tests, after whatever happened."""
        with self._attaching, self._turn:
            self._slots.check_integrity()
            self._bank.check_integrity()
            assert self._facts.keys() == set(self._slots.holders()), "facts of others than the resident"
            assert self._bank.slots == self._slots.capacity + _SLOTS_BESIDE, f"{self._bank.slots} slots in the bank"
            if self._lean is not None:
                self._lean.check_integrity()

    def _make_fit(self, adapter: Adapter) -> None:
        """Let adapters go until the bank, widened for another one, keeps within its memory."""
        if self._bank_bytes is None:
            return
        needed = self._bank.bytes_per_slot(adapter)
        fits = self._bank_bytes // max(needed, 1) - _SLOTS_BESIDE
        if fits >= self._slots.capacity:
            return
        if fits < 1:
            least_mb, limit_mb = needed * (_SLOTS_BESIDE + 1) / 2**20, self._bank_bytes / 2**20
            raise VerificationError(str(adapter.id), "memory", f"a bank of {limit_mb:.0f} MiB", f"{least_mb:.0f} MiB")
        kept = self._slots.shrink(fits)
        self._facts = {known: self._facts[known] for known in self._slots.holders()}
        self._bank.move(kept, fits + _SLOTS_BESIDE)

    def _prepare(self, rows: Sequence[Row], outcomes: list[Outcome | None]) -> list[_Work]:
        """Look up, tokenise each distinct text once, truncate as each adapter wants."""
        texts = [text for text in {row.text: None for row in rows} if _is_text(text)]
        tokens = dict(zip(texts, self._tokenise(texts), strict=True))
        work: list[_Work] = []
        for at, row in enumerate(rows):
            adapter = self._facts.get(row.adapter)
            if adapter is None:
                outcomes[at] = UnknownAdapter(str(row.adapter))
                continue
            slot = self._slots.touch(row.adapter)
            text: Tokens | None = tokens.get(row.text)
            if text is None:
                outcomes[at] = InvalidText("the text holds half a surrogate pair, which is no character")
                continue
            too_long = len(text.ids) > adapter.max_tokens
            if too_long and row.long_text == "windows":
                windows = text.windows(adapter.max_tokens)
                if len(windows) > MAX_WINDOWS:
                    longest = len(text.ids) * MAX_WINDOWS // len(windows)
                    outcomes[at] = TextTooLong(len(text.ids), longest, f"{row.adapter} in {MAX_WINDOWS} windows")
                else:
                    work += [_Work(at, adapter, slot, ids) for ids in windows]
                continue
            if too_long and row.long_text == "refuse":
                outcomes[at] = TextTooLong(len(text.ids), adapter.max_tokens, str(row.adapter))
                continue
            cut = adapter.max_tokens, adapter.truncation_side
            kept = text.kept(*cut) if too_long else None
            work.append(_Work(at, adapter, slot, text.truncated(*cut), too_long, kept))
        return work

    def _run(self, work: list[_Work]) -> Sequence[list[float] | InferenceFailed]:
        """A micro-batch's logits, C of the bank's widest label set each."""
        try:
            slots = [item.slot for item in work]
            lora = any(item.adapter.has_lora for item in work)
            logits: list[list[float]] = self.forward([item.ids for item in work], slots, lora=lora).tolist()
        except (RuntimeError, ValueError, IndexError) as error:
            return [InferenceFailed(f"the forward pass failed: {type(error).__name__}")] * len(work)
        return logits

    @torch.inference_mode()
    def forward(self, ids: list[list[int]], slots: list[int], *, lora: bool = True) -> Tensor:
        """One forward pass over rows that are tokenised already; what `classify` runs a micro-batch with.

        Args:
            ids: token ids of each row, within the base's length.
            slots: the bank's slot of each row; 0 is the base.
            lora: False if no row's adapter has LoRA, so that its products are left out.

        Returns:
            logits [B, C], C as wide as the widest label set in the bank, fp32 on the CPU.
        """
        logits = None
        if self._buckets is not None and self._lean_fits:
            logits = self._buckets(ids, slots, lora=lora)
        return self._any_shape(ids, slots, lora=lora) if logits is None else logits.float().cpu()

    def _any_shape(self, ids: list[list[int]], slots: list[int], *, lora: bool) -> Tensor:
        """As `forward`, in the batch's own shape, beside whatever another thread runs."""
        length, shortest = max(map(len, ids)), min(map(len, ids))
        self._bank.select(slots, lora=lora)
        padded = torch.tensor([row + [self._tokenise.pad_id] * (length - len(row)) for row in ids], device=self._device)
        logits: Tensor
        if self._lean is not None and self._lean_fits:
            real = None
            if shortest < length:
                lengths = torch.tensor([len(row) for row in ids], device=self._device)
                real = torch.arange(length, device=self._device) < lengths.unsqueeze(1)
            logits = self._lean(padded, real)
        else:
            mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
            logits = self._model(input_ids=padded, attention_mask=torch.tensor(mask, device=self._device)).logits
        return logits.float().cpu()

    @torch.inference_mode()
    def _check_golden(self, adapter: Adapter, slot: int) -> None:
        if not adapter.golden:
            return
        tolerance = GOLDEN_TOLERANCE if self._dtype == torch.float32 else _HALF_TOLERANCE
        tokens = self._tokenise([example.text for example in adapter.golden])
        ids = [text.truncated(adapter.max_tokens, adapter.truncation_side) for text in tokens]
        logits = self._any_shape(ids, [slot] * len(ids), lora=bool(adapter.lora))
        for row, example in zip(logits, adapter.golden, strict=True):
            found = row[: len(adapter.labels)]
            off = float((found - torch.tensor(example.logits)).abs().max())
            if not off <= tolerance:  # a NaN is refused too
                raise VerificationError(
                    str(adapter.id),
                    "golden logits",
                    f"{[round(value, 5) for value in example.logits]} within {tolerance:g} for {example.text[:60]!r}",
                    f"{[round(value, 5) for value in found.tolist()]}, off by {off:.2g}",
                )


PASS_COST_TOKENS = 48
"""What a forward pass costs on a CPU besides its tokens (dispatch, gathers), in tokens' worth of time."""


def _pinned(adapter: Adapter) -> Adapter:
    """In page-locked memory, from which CUDA copies without waiting."""
    lora = {name: LoraPair(pair.a.pin_memory(), pair.b.pin_memory()) for name, pair in adapter.lora.items()}
    return replace(adapter, lora=lora, saved={name: value.pin_memory() for name, value in adapter.saved.items()})


def _is_text(text: str) -> bool:
    """Python strings, and so JSON, can hold halves of surrogate pairs; no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Pooling:
    """Brings the windows of a row together again: of a row, its answer, when the last of them is there."""

    def __init__(self, work: Sequence[_Work]) -> None:
        self._left = Counter(item.at for item in work)
        self._found: dict[int, list[tuple[int, list[float] | InferenceFailed]]] = {}

    def add(
        self, part: Sequence[_Work], logits: Sequence[list[float] | InferenceFailed]
    ) -> Iterator[tuple[int, Outcome]]:
        for item, found in zip(part, logits, strict=True):
            self._found.setdefault(item.at, []).append((len(item.ids), found))
            self._left[item.at] -= 1
            if not self._left[item.at]:
                yield item.at, _answer(item, self._found.pop(item.at))


def _answer(item: _Work, windows: list[tuple[int, list[float] | InferenceFailed]]) -> Outcome:
    """An adapter's own classes, pooled over windows, as scores by its own temperature. In plain Python: a row has a
    few classes, and a tensor operation costs more than they do."""
    adapter, tokens = item.adapter, sum(count for count, _ in windows)
    own = [0.0] * len(adapter.labels)
    for count, found in windows:
        if isinstance(found, InferenceFailed):
            return found
        for at in range(len(own)):
            own[at] += found[at] * (count / tokens)
    scaled = [value / adapter.temperature for value in own]
    if not all(map(math.isfinite, scaled)):
        return InferenceFailed(f"adapter {adapter.id} gave logits that are not finite")
    if adapter.multi_label:
        scores = [_sigmoid(value) for value in scaled]
    else:
        largest = max(scaled)
        powers = [math.exp(value - largest) for value in scaled]
        total = sum(powers)
        scores = [power / total for power in powers]
    return Answer(adapter.labels, tuple(own), tuple(scores), tokens, item.truncated, len(windows), item.kept)


def _sigmoid(value: float) -> float:
    # Whichever form does not overflow.
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))

"""The engine: rows in, one outcome a row out. Server, trainer's golden check, bulk scoring and benchmarks all use it.

tokenise -> plan -> encoder + LoRA bank -> per-adapter head -> labels
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters.base_model import BaseModelFiles
from adapters.errors import InferenceFailed, InvalidText, TextTooLong, UnknownAdapter, VerificationError
from adapters.reference import AdapterId
from adapters.verify import GOLDEN_TOLERANCE, Adapter, BaseLayout, read_adapter
from engine.bank import LoraBank, saved_modules_refusal
from engine.encoder import load_encoder
from engine.lean import lean_encoder
from engine.plan import MicroBatch, plan
from engine.rows import Answer, BatchStats, Outcome, Row
from engine.tokenise import Tokeniser, Tokens

MAX_LABELS = 1024
"""Widest label set: every slot's head is padded to the widest one seen, so one adapter could cost all of them."""

_HALF_TOLERANCE = 0.05
"""Golden tolerance where the encoder runs in bf16 or fp16: those keep 8 to 11 bits, training computed in fp32."""


@dataclass(frozen=True, slots=True)
class _Work:
    """A row that will run: its place in the request, its adapter, slot and token ids."""

    at: int
    adapter: Adapter
    slot: int
    ids: list[int]
    truncated: bool


class Engine:
    """One base model, its bank, and the adapters resident in it.

    Methods may be called from several threads; forward passes and slot writes take turns, reading from disk does not.
    """

    def __init__(
        self,
        base: BaseModelFiles,
        *,
        capacity: int = 64,
        max_rank: int = 64,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        token_budget: int = 8192,
        lean: bool = True,
    ) -> None:
        """
        Args:
            capacity: adapters resident at once, >= 1.
            max_rank: largest LoRA rank taken.
            device: a torch device.
            dtype: of the encoder; fp32 on a CPU and bf16 elsewhere by default. Heads are always fp32.
            token_budget: most padded tokens in one forward pass.
            lean: use the lean pass where the architecture has one; False is for comparing.

        Raises:
            BaseModelError: the base cannot be loaded.
        """
        self._dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        encoder = load_encoder(base, device=device, dtype=self._dtype)
        self._model = encoder.model
        self._device = device
        self._tokenise = Tokeniser(encoder.tokenizer)
        self._bank = LoraBank(encoder.model, capacity + 1)
        self._lean = lean_encoder(encoder.model, self._bank) if lean else None
        self._lean_fits = self._lean is not None
        self._max_rank = max_rank
        self._token_budget = token_budget
        self._lock = threading.RLock()
        self._resident: OrderedDict[AdapterId, tuple[int, Adapter]] = OrderedDict()  # least recently used first
        self._free = list(range(capacity, 0, -1))
        self.capacity = capacity
        self.layout: BaseLayout = encoder.layout

    @property
    def resident(self) -> tuple[AdapterId, ...]:
        """Adapters that can answer now, least recently used first."""
        with self._lock:
            return tuple(self._resident)

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
        return read

    def attach(self, adapter: Adapter) -> None:
        """Make an adapter resident once its golden texts give its golden logits; the least recently used makes room.

        Raises:
            VerificationError: the golden logits differ; the adapter is not resident then, and nobody was evicted.
        """
        with self._lock:
            if adapter.id in self._resident:
                return
            evicted = None if self._free else self._resident.popitem(last=False)
            slot = self._free.pop() if evicted is None else evicted[1][0]
            try:
                self._write(slot, adapter)
                self._check_golden(adapter, slot)
            except BaseException:
                # Whatever broke, the slot goes back to whom it belonged.
                if evicted is None:
                    self._free.append(slot)
                else:
                    self._write(slot, evicted[1][1])
                    self._resident[evicted[0]] = evicted[1]
                    self._resident.move_to_end(evicted[0], last=False)
                raise
            self._resident[adapter.id] = (slot, adapter)

    def detach(self, adapter: AdapterId) -> None:
        """Free an adapter's slot; nothing happens if it is not resident."""
        with self._lock:
            found = self._resident.pop(adapter, None)
            if found is not None:
                self._free.append(found[0])

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
    def classify(self, rows: Sequence[Row]) -> tuple[list[Outcome], BatchStats]:
        """One outcome a row, in order; what is wrong with one row never touches another.

        A row whose adapter is not resident gets `UnknownAdapter`, one that declines truncation `TextTooLong`.
        """
        with self._lock:
            started = time.perf_counter()
            outcomes: list[Outcome | None] = [None] * len(rows)
            work = self._prepare(rows, outcomes)
            tokenised = time.perf_counter()
            lengths = [len(item.ids) for item in work]
            batches = plan(lengths, token_budget=self._token_budget, pass_cost_tokens=PASS_COST_TOKENS)
            for batch in batches:
                self._run(batch, [work[at] for at in batch.rows], outcomes)
            stats = BatchStats(
                rows=len(work),
                micro_batches=len(batches),
                tokens=sum(lengths),
                padded_tokens=sum(batch.padded_tokens for batch in batches),
                tokenise_s=tokenised - started,
                forward_s=time.perf_counter() - tokenised,
            )
        done = [outcome for outcome in outcomes if outcome is not None]
        assert len(done) == len(rows)
        return done, stats

    def slot(self, adapter: AdapterId) -> int:
        """The bank's slot of a resident adapter; KeyError if it is not resident."""
        with self._lock:
            return self._resident[adapter][0]

    def bank_bytes(self) -> int:
        """Memory that the slots of all adapters take."""
        return self._bank.bytes()

    def _write(self, slot: int, adapter: Adapter) -> None:
        self._bank.write(slot, adapter)
        if self._lean is not None:
            self._lean_fits = self._lean.refresh()

    def _prepare(self, rows: Sequence[Row], outcomes: list[Outcome | None]) -> list[_Work]:
        """Look up, tokenise each distinct text once, truncate as each adapter wants."""
        texts = [text for text in {row.text: None for row in rows} if _is_text(text)]
        tokens = dict(zip(texts, self._tokenise(texts), strict=True))
        work: list[_Work] = []
        for at, row in enumerate(rows):
            found = self._resident.get(row.adapter)
            if found is None:
                outcomes[at] = UnknownAdapter(str(row.adapter))
                continue
            self._resident.move_to_end(row.adapter)
            slot, adapter = found
            text: Tokens | None = tokens.get(row.text)
            if text is None:
                outcomes[at] = InvalidText("the text holds half a surrogate pair, which is no character")
                continue
            truncated = len(text.ids) > adapter.max_tokens
            if truncated and not row.truncate:
                outcomes[at] = TextTooLong(len(text.ids), adapter.max_tokens, str(row.adapter))
                continue
            ids = text.truncated(adapter.max_tokens, adapter.truncation_side)
            work.append(_Work(at, adapter, slot, ids, truncated))
        return work

    def _run(self, batch: MicroBatch, work: list[_Work], outcomes: list[Outcome | None]) -> None:
        try:
            slots = [item.slot for item in work]
            logits = self.forward([item.ids for item in work], slots, lora=any(item.adapter.lora for item in work))
        except (RuntimeError, ValueError, IndexError) as error:
            for item in work:
                outcomes[item.at] = InferenceFailed(f"the forward pass failed: {type(error).__name__}")
            return
        for item, outcome in zip(work, _answers(logits, work), strict=True):
            outcomes[item.at] = outcome

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
        length = max(map(len, ids))
        self._bank.select(slots, lora=lora)
        padded = torch.tensor([row + [self._tokenise.pad_id] * (length - len(row)) for row in ids], device=self._device)
        logits: Tensor
        if self._lean is not None and self._lean_fits:
            logits = self._lean(padded, [len(row) for row in ids])
        else:
            mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
            logits = self._model(input_ids=padded, attention_mask=torch.tensor(mask, device=self._device)).logits
        return logits.float().cpu()

    def _check_golden(self, adapter: Adapter, slot: int) -> None:
        if not adapter.golden:
            return
        tolerance = GOLDEN_TOLERANCE if self._dtype == torch.float32 else _HALF_TOLERANCE
        tokens = self._tokenise([example.text for example in adapter.golden])
        ids = [text.truncated(adapter.max_tokens, adapter.truncation_side) for text in tokens]
        logits = self.forward(ids, [slot] * len(ids), lora=bool(adapter.lora))
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


def _is_text(text: str) -> bool:
    """Python strings, and so JSON, can hold halves of surrogate pairs; no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _answers(logits: Tensor, work: list[_Work]) -> list[Outcome]:
    """Each row's own classes, as scores by its own temperature."""
    outcomes: list[Outcome] = []
    for row, item in zip(logits, work, strict=True):
        own = row[: len(item.adapter.labels)]
        if not torch.isfinite(own).all():
            outcomes.append(InferenceFailed(f"adapter {item.adapter.id} gave logits that are not finite"))
            continue
        scaled = own / item.adapter.temperature
        scores = scaled.sigmoid() if item.adapter.multi_label else scaled.softmax(0)
        outcomes.append(
            Answer(item.adapter.labels, tuple(own.tolist()), tuple(scores.tolist()), len(item.ids), item.truncated)
        )
    return outcomes

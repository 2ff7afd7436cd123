"""When a promotion steps forward, and when it is taken back. Pure: evidence in, a decision or none out.

Both directions need evidence. Forward, after the wait that the file asks for: a candidate may have a share of the
units as large as makes the harm it can still be doing tolerable for all traffic together, that is, share times the
largest loss that the confidence sequence does not exclude (Xu et al., "SQR: Balancing Speed, Quality and Risk in
Online Experiments", KDD 2018, arXiv 1801.08532). So early, small steps need little feedback and the last needs all of
it. Back: a guardrail is shown to be crossed, by intervals that hold however often one looks.
"""

from typing import Literal, NamedTuple

from service.analysis import Difference, exceeds
from service.results import Evidence
from service.routing import Promotion

_SLOW_SHARE = 0.01
"""What `p99_ms` bounds: the share of texts that take longer."""


class Step(NamedTuple):
    """What to do, and why.

    Attributes:
        percent: the candidate's share from now on, with `forward`; 100 once more at the end is `finish`.
    """

    towards: Literal["forward", "back", "finish", "wait"]
    percent: float
    reason: str


def decide(
    promotion: Promotion,
    percent: float,
    held_s: float,
    seen: Evidence,
    difference: Difference | None,
    void: bool,
) -> Step:
    """
    Args:
        percent: the candidate's share now, one of the stages.
        held_s: time since it has it.
        seen: of the candidate since then.
        difference: its accuracy less the control's, over the whole promotion.
        void: the units' split is not what was ordered.
    """
    rails = promotion.guardrails
    harm = _harm(promotion, seen, difference)
    if harm is not None:
        return Step("back", 0, harm)
    if held_s < promotion.hold_s:
        return Step("wait", percent, f"at {percent:g} % for {held_s:.0f} of {promotion.hold_s:.0f} s")
    if seen.units < promotion.units:
        return Step("wait", percent, f"{seen.units} of {promotion.units} units seen at {percent:g} %")
    stages = promotion.stages
    following = next((stage for stage in stages if stage > percent), None)
    if following is None:
        return Step("finish", 100, f"held at 100 % for {held_s:.0f} s, {_figures(seen)}")
    if void:
        return Step("wait", percent, "the units' split is not what the weights give: nothing may be concluded from it")
    if rails.error_rate is not None and seen.errors > rails.error_rate * seen.texts:
        return Step("wait", percent, f"{seen.errors} of {seen.texts} texts failed, {rails.error_rate:.2%} may")
    if rails.p99_ms is not None and seen.slow > _SLOW_SHARE * seen.texts:
        return Step("wait", percent, f"{seen.slow} of {seen.texts} texts took more than {rails.p99_ms:g} ms")
    if rails.accuracy is not None:
        if difference is None:
            return Step("wait", percent, "too few units with feedback to say anything of its accuracy")
        risk = -difference.anytime.low * following / 100
        said = f"at {following:g} % it may cost all traffic {max(risk, 0):.4f} of accuracy, {rails.accuracy:g} may be"
        if risk > rails.accuracy:
            return Step("wait", percent, f"{said}: more feedback is needed")
        return Step("forward", following, f"{said}; {_figures(seen)}")
    return Step("forward", following, f"held for {held_s:.0f} s, {_figures(seen)}")


def _harm(promotion: Promotion, seen: Evidence, difference: Difference | None) -> str | None:
    """The guardrail that is shown to be crossed, in words."""
    rails = promotion.guardrails
    if rails.error_rate is not None and exceeds(seen.errors, seen.texts, rails.error_rate):
        return f"error rate: {seen.errors} of {seen.texts} texts failed, at most {rails.error_rate:.2%} may"
    if rails.p99_ms is not None and exceeds(seen.slow, seen.texts, _SLOW_SHARE):
        return f"p99: {seen.slow} of {seen.texts} texts took more than {rails.p99_ms:g} ms, 1 % may"
    if rails.accuracy is not None and difference is not None and difference.anytime.high < -rails.accuracy:
        bounds = f"{difference.anytime.low:+.4f} to {difference.anytime.high:+.4f}"
        return f"accuracy: {bounds} against the control's, at most {-rails.accuracy:g} may be lost"
    return None


def _figures(seen: Evidence) -> str:
    return f"{seen.units} units, {seen.texts} texts, {seen.errors} errors"

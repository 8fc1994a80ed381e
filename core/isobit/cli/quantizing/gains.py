"""What a quantized file brings, and what it does not, in sentences: tidying apart from integers, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from isobit.cli.quantizing.latency import Latency, Ratio

#: A file is noticeably faster where its time is less than this of the other's, and so in nearly all rounds.
_FASTER = 0.9
#: Integers are slower where they take more than this of the time in float, and more at all in nearly all rounds.
_SLOWER = 1.05


def gain_lines(
    latency: Latency | None, float_bytes: int | None, quantized_bytes: int | None, tidied_bytes: int | None
) -> Iterator[str]:
    """One sentence each: what of the gain is tidying, that integers are slower than float, that the file is no smaller.

    `tidied_bytes` is the size of the network in float as isobit writes it. None is what was not measured.
    """
    if latency is not None:
        yield from _time_lines(latency)
    if float_bytes and quantized_bytes and quantized_bytes >= float_bytes:
        yield _size_line(float_bytes, quantized_bytes, tidied_bytes)


def _time_lines(latency: Latency) -> Iterator[str]:
    tidied, given = latency.tidied, _given(latency)
    is_tidied_faster = tidied is not None and tidied.tidying is not None and _is_faster(tidied.tidying)
    if tidied is not None and tidied.tidying is not None and is_tidied_faster:
        yield (
            f"of the {latency.ratio:.2f}x in latency, {tidied.tidying.best:.2f}x is tidying (the same network in float "
            f"as isobit writes it takes {tidied.float_ms:.3g} ms), and {tidied.integers.best:.2f}x are the integers"
        )
    if tidied is not None and (given is None or is_tidied_faster):
        integers: Ratio | None = tidied.integers
        beside = f"as isobit writes it in float ({tidied.float_ms:.3g} ms)"
        advice = "where time counts, write that (--override '*=float')"
    else:
        integers, beside, advice = given, "in float as given", "where time counts, keep that"
    if integers is not None and _is_slower(integers):
        yield (
            f"integers do not pay for this network on this processor: {integers.best:.2f}x of its time {beside}; "
            f"{advice}, or --exclude what gains nothing: `isobit plan` says what may"
        )


def _size_line(float_bytes: int, quantized_bytes: int, tidied_bytes: int | None) -> str:
    text = f"the quantized file is no smaller than the given one ({quantized_bytes / float_bytes:.2f}x): "
    if tidied_bytes is not None and tidied_bytes > float_bytes:
        text += (
            f"as isobit writes it, with what is computed from constants stored, the network takes "
            f"{tidied_bytes / float_bytes:.2f}x in float"
        )
    else:
        text += "scales, zero points and the nodes of quantizers take more than so few weights save"
    return f"{text}; where size counts, keep the given file"


def _given(latency: Latency) -> Ratio | None:
    if latency.ratio is None or latency.ratio_low is None or latency.ratio_high is None:
        return None
    return Ratio(latency.ratio, latency.ratio_low, latency.ratio_high)


def _is_faster(ratio: Ratio) -> bool:
    return ratio.best < _FASTER and ratio.high < 1


def _is_slower(ratio: Ratio) -> bool:
    return ratio.best > _SLOWER and ratio.low > 1

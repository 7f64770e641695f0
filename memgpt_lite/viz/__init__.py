"""Looking inside a memory: figures (`figures`), sliders that choose among them (`slider`), a live view of a trace (`explorer`),
two memories to act on (`lab`), a drawing of the six steps (`diagrams`)."""

from .diagrams import six_steps
from .explorer import MemoryExplorer
from .figures import (
    Picture,
    alignment_picture,
    before_and_after,
    gradients_by_segment,
    loss_curve,
    memory_at,
    provenance_bars,
    read_picture,
    slots,
    slots_through_time,
    which_slots,
    write_picture,
)
from .lab import MemoryLab
from .live import LivePicture
from .slider import slider, sliders

__all__ = [
    "LivePicture", "MemoryExplorer", "MemoryLab", "Picture", "alignment_picture", "before_and_after", "gradients_by_segment",
    "loss_curve", "memory_at", "provenance_bars", "read_picture", "six_steps", "slider", "sliders", "slots", "slots_through_time", "which_slots", "write_picture",
]  # fmt: skip

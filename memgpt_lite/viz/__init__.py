"""Looking inside a memory: figures (`figures`), and a slider that steps through them (`slider`)."""

from .figures import (
    Picture,
    gradients_by_segment,
    loss_curve,
    memory_at,
    provenance_bars,
    read_picture,
    slots,
    slots_through_time,
    write_picture,
)
from .slider import slider

__all__ = [
    "Picture", "gradients_by_segment", "loss_curve", "memory_at", "provenance_bars", "read_picture", "slider", "slots",
    "slots_through_time", "write_picture",
]  # fmt: skip

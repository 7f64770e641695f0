"""A picture that grows while something goes on, such as training."""

from collections.abc import Callable, Sized

from IPython.display import DisplayHandle

from .figures import Picture


class LivePicture:
    """Draws a picture anew, in one place, while a model is trained: `live = LivePicture(loss_curve)`, `train(…, on_step=live)`.

    draw: makes the picture of a history. Make the LivePicture in the cell in which the training runs; it draws after every `every`
    steps. `live.show(history)` at the end draws the last one, which is what stays in the notebook.
    """

    def __init__(self, draw: Callable[[Sized], Picture], every: int = 50):
        self.draw, self.every, self.handle = draw, every, DisplayHandle()
        self.handle.display({"text/plain": f"(a picture appears here after {every} steps)"}, raw=True)

    def __call__(self, history: Sized) -> None:
        if len(history) % self.every == 0:
            self.show(history)

    def show(self, history: Sized) -> None:
        data, metadata = self.draw(history).bundle()
        self.handle.update(data, metadata=metadata, raw=True)

"""How the commands that pre-train a source network show its progress."""

from typing import TYPE_CHECKING

from densescore.cli.console import complain, note
from densescore.cli.progress import Progress

if TYPE_CHECKING:
    from densescore.paper.pretrain.training import Event


class SourceProgress(Progress):
    """Shows a pre-training's events: a bar per epoch, a line for each that is done. Of many processes, one shows."""

    def __init__(self, shown: bool) -> None:
        super().__init__(shown=shown)
        self._first, self._task = shown, self.add("")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._first:
            note(text)

    def show(self, event: "Event") -> None:
        """Show an event."""
        description = f"epoch {event.epoch + 1}, loss {event.loss:.3f}"
        self.update(self._task, event.step, total=event.steps, description=description, rate=event.rate)
        if event.validation is not None:
            self.say(
                f"{description}, {event.rate:.0f} images/s, learning rate {event.learning_rate:g}; validation: loss "
                f"{event.validation.loss:.4f}, top-1 {event.validation.top1:.3f}, top-5 {event.validation.top5:.3f}"
            )
        for problem in event.unreadable:
            complain(f"left out: {problem}")

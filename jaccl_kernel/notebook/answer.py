"""What comes back from resident ranks: an answer to a prompt, or the error of a cell."""

from dataclasses import dataclass

from jaccl_kernel.errors import JacclError


@dataclass(frozen=True)
class Answer:
    """What a prompt brought.

    Args:
        text: the answer.
        reasoning: what the model thought before it, where it marks that.
        finish: "stop" (it ended), "length" (max_tokens), or "stopped".
        prompt_tokens, cached_tokens, tokens: of the prompt, of it from the prompt cache, of the answer.
        ttft_s: seconds to the first token, or None.
        tokens_per_s: after the first token, or None.
    """

    text: str
    reasoning: str = ""
    finish: str = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None

    def figures(self) -> str:
        """Its speed in a line."""
        told = [f"{self.tokens} tokens"]
        if self.tokens_per_s:
            told.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.ttft_s is not None:
            told.append(f"TTFT {self.ttft_s:.2f} s")
        if self.cached_tokens:
            told.append(f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens from the cache")
        return ", ".join([*told, *([self.finish] if self.finish != "stop" else [])])

    def __str__(self) -> str:
        """The answer's text."""
        return self.text

    def __repr__(self) -> str:
        """Its figures: the text was shown as it came."""
        return f"<Answer: {self.figures()}>"


class CellError(JacclError):
    """A cell raised on a rank; what IPython shows of it is that rank's traceback."""

    def __init__(self, rank: int, name: str, kind: str, text: str, traceback: str) -> None:
        super().__init__(f"{kind}: {text}", where=f"rank {rank} ({name})")
        self.rank = rank
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:  # IPython asks for this name
        return [*self.traceback.splitlines(), f"first on {self.where}"]

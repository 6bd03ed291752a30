"""How much of the trained towers to believe, beside popularity and memory: a question for the validation window.

Towers that learned from a few hundred users rank by noise as well as by what they know, and the score adds it to parts
that were fitted with few degrees of freedom. A linear blend of rankers whose weights are chosen on held-out data is the
usual answer; here one weight is free, since the others have theirs already. What steps learned of popularity counts
with the towers, so that a share of 0 is the fitted start.
"""

from conversion_retrieval.progress import say
from conversion_retrieval.training.interruption import StopRequest
from conversion_retrieval.training.loop import Trainer


def choose_tower_share(trainer: Trainer, stop: StopRequest) -> float:
    """Give the model of a finished ``trainer`` the share with which it finds most; returns what it finds with it.

    The first of equals; 1 where nothing was validated on, and where towers are all there is, since those rank alike
    with any share. What was measured is part of the position: a run that goes on elsewhere keeps its share. Raises
    ``Interrupted`` after SIGTERM.
    """
    model, position, shares = trainer.learner.model, trainer.position, trainer.config.tower_shares
    if position.best_step < 0 or (model.bias is None and model.memory is None):
        return position.best_value
    while len(position.share_values) < len(shares):
        found = _found_with(shares[len(position.share_values)], trainer, stop)
        position.share_values = [*position.share_values, found]
        trainer.save()
    values = position.share_values
    best = max(range(len(shares)), key=lambda n: values[n])
    model.tower_share.fill_(shares[best])
    if len(shares) > 1:
        assert trainer.validator is not None
        listed = ", ".join(f"{share:g} {value:.4f}" for share, value in zip(shares, values, strict=True))
        say(f"{trainer.validator.metric} by the towers' share of the score: {listed}; kept {shares[best]:g}")
    return values[best]


def _found_with(share: float, trainer: Trainer, stop: StopRequest) -> float:
    if share == 1:
        return trainer.position.best_value
    # As all validations do, on the average's copy, which is never compiled; its own weights have had their day.
    model = trainer.average.model
    model.load_state_dict(trainer.learner.model.state_dict())
    assert trainer.validator is not None
    model.tower_share.fill_(share)
    values = trainer.validator.measure(model, stop)
    model.tower_share.fill_(1.0)
    if values is None:
        trainer.leave()
    return values[trainer.validator.metric]

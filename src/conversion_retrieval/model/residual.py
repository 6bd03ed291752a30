"""What a query asks for in the space of item embeddings, added to the query head's output."""

import torch
from torch import Tensor, nn

from conversion_retrieval.lookup import look_up
from conversion_retrieval.model.config import ModelConfig
from conversion_retrieval.model.history import HistorySummary
from conversion_retrieval.model.inputs import QueryInputs
from conversion_retrieval.model.sizes import InputSizes


class QueryResidual(nn.Module):
    """The history's summary, the subject item and the projected context embedding, weighed and added: [B, dim].

    Each surface learns its own weights: a search and what its user had before do not count alike. The projection
    starts at zero, so that training starts from the items alone.
    """

    def __init__(self, sizes: InputSizes, config: ModelConfig) -> None:
        super().__init__()
        dim, has_history = config.embedding_dim, config.history.encoder != "none"
        self.summary = HistorySummary(config.history, dim, sizes.actions) if has_history else None
        self.context = nn.Linear(sizes.context_embedding, dim, bias=False) if sizes.context_embedding else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)
        self.log_weights = nn.Parameter(torch.zeros(sizes.surfaces, 3))

    def forward(self, queries: QueryInputs, embedded: Tensor, subject: Tensor) -> Tensor:
        """``embedded`` [I + 1, dim] embeds items, the unknown one last; ``subject`` [B, dim] are the subjects'.

        A query without a subject, or with an unknown one, gets nothing from it.
        """
        unknown = len(embedded) - 1
        subject_weight, history_weight, context_weight = self._weights(queries)
        total = subject * (subject_weight * (queries.context_item != unknown).unsqueeze(1))
        if self.summary is not None:
            total = total + history_weight * self.summary(queries, embedded)
        if self.context is not None:
            total = total + context_weight * self.context(queries.context_embedding)
        return total

    def _weights(self, queries: QueryInputs) -> tuple[Tensor, ...]:
        """Three weights [B, 1]."""
        return look_up(self.log_weights, queries.surface).exp().unsqueeze(-1).unbind(1)

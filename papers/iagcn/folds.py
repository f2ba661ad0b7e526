"""One network per fold of the cross-validation, all trained side by side as one model."""

import copy

import torch
from torch import Tensor, nn


class FoldNetworks(nn.Module):
    """Networks of one architecture with their weights stacked, (F, ...): fold f has its own slice of each.

    The networks don't influence each other, and each gets the gradient that it would get alone.

    Args:
        networks: one per fold.
    """

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        parameters, buffers = torch.func.stack_module_state(networks)
        # A dot is not allowed in the name of a registered parameter.
        self.weights = nn.ParameterDict({name.replace(".", "/"): value for name, value in parameters.items()})
        for name, value in buffers.items():
            self.register_buffer(name.replace(".", "/"), value)
        self.buffer_names = list(buffers)
        self.__dict__["template"] = copy.deepcopy(networks[0]).to("meta")  # gives the architecture, holds no weights

    def state_of(self, folds) -> dict[str, Tensor]:
        """Weights and buffers of some folds (n,), or of one fold (an integer), by their names in the network."""
        state = {name.replace("/", "."): value[folds] for name, value in self.weights.items()}
        return state | {name: getattr(self, name.replace(".", "/"))[folds] for name in self.buffer_names}

    def forward(self, folds: Tensor, x: Tensor, graph: Tensor | None = None) -> Tensor:
        """Class scores of some folds' networks.

        Args:
            folds: (n,) numbers of the folds.
            x: (n, N, D) their subjects.
            graph: (n, N, N) second argument of the networks, if they take one.

        Returns:
            (n, N, c).
        """
        inputs = (x,) if graph is None else (x, graph)

        def one(state: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            return torch.func.functional_call(self.template, state, inputs)

        return torch.vmap(one)(self.state_of(folds), *inputs)

    def network(self, fold: int) -> nn.Module:
        """The network of one fold, to be used alone."""
        network = copy.deepcopy(self.template).to_empty(device=next(iter(self.state_of(fold).values())).device)
        network.load_state_dict({name: value.detach() for name, value in self.state_of(fold).items()})
        return network.eval()

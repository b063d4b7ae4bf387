# SPDX-License-Identifier: Apache-2.0
"""What turns a vanilla transformers class into one whose norms follow its config."""

from typing import Any, ClassVar

from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .batch_norms import BatchAreaNorm
from .create import get_spec
from .identity import FAMILIES
from .no_family import PLACES, Swapped
from .norms import TokenNorm
from .private_transformers import is_initialized, require_initialization
from .scaled_embedding import ScaledEmbedding, scale_embeddings
from .swap import swap_norms


class IBNormMixin(Swapped):
    """Put before a vanilla model class: builds it as it is, then swaps its norms by the config's norm flags."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for host in cls.__mro__:
            if issubclass(host, PreTrainedModel) and not issubclass(host, Swapped):
                FAMILIES.setdefault(host, cls)  # a vanilla model whose norms are swapped becomes one of this class
                break

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        require_initialization()
        if not hasattr(config, "norm_options"):  # code that came with a checkpoint has classes of its own
            raise ValueError(
                f"{type(self).__name__} takes the norms that its config says, and a {type(config).__name__} says none; "
                f"give a {self.config_class.__name__}"  # type: ignore[attr-defined]
            )
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        swap_norms(self, {"norm_type": config.norm_type, **config.norm_options()})  # type: ignore[arg-type]
        if config.norm_embedding_scale:
            scale_embeddings(self)
        self._complete()

    def _complete(self) -> None:
        """What a class of ours has beside its norms, built here or become of a vanilla model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As any model's. ValueError where a host's own weights would be read by a norm that writes its gain otherwise.

        Gemma's weight is a gain less 1: read as a gain, all features would all but vanish, without a word.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).config
        offset = getattr(get_spec(config.norm_type).classes.get("token"), "gain_offset", 0.0)
        if pretrained_model_name_or_path is not None and config.norm_affine and offset != config.host_gain_offset:
            stored, _ = PreTrainedConfig.get_config_dict(
                pretrained_model_name_or_path, **{k: v for k, v in kwargs.items() if k in PLACES}
            )
            if stored.get("model_type") != type(config).model_type:
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds a {stored.get('model_type')}, whose norms write their gain "
                    f"as {_GAIN[config.host_gain_offset]} and {config.norm_type} as {_GAIN[offset]}; convert it by "
                    "`ibnorm-hf convert` or replace_norms"
                )
        return loaded

    @classmethod
    def is_custom_code(cls) -> bool:
        # For code outside transformers, its initialisation skips every module without parameters of its own, and with
        # them GPT-2's scaling of c_proj by depth. Ours follows transformers' rules, so it is not custom in that sense.
        return False

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        done = is_initialized(module)
        super()._initialize_weights(module, is_custom_code)  # type: ignore[misc]
        if module is self and not done:
            # transformers visits a model after all its sub-models, and a vanilla sub-model does not know our norms:
            # this last visit is the one place that every loading path, nested or not, passes.
            init_norms(module)


_GAIN = {0.0: "w", 1.0: "1 + w"}


class IBNormHeadMixin(IBNormMixin):
    """The same for a head that builds its base model through AutoModel, which must build ``base_class``."""

    base_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PreTrainedConfig) -> None:
        # AutoModel must know this very config class: code that came with a checkpoint has a class of its own.
        AutoModel.register(type(config), self.base_class, exist_ok=True)
        super().__init__(config)


def init_norms(model: nn.Module) -> None:
    """Set what no checkpoint provided to its start value.

    LayerNorm and BatchNorm are transformers' own affair, except a BatchNorm without bias or affine.
    """
    for module in model.modules():
        if isinstance(module, TokenNorm | BatchAreaNorm):
            module.reset_parameters()
        elif isinstance(module, ScaledEmbedding):
            module.reset_scale()
        elif isinstance(module, nn.BatchNorm2d):
            if module.weight is not None:
                init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
            if module.num_batches_tracked is not None:
                init.zeros_(module.num_batches_tracked)
                for name, start in (("running_mean", 0.0), ("running_var", 1.0)):
                    init.constant_(getattr(module, name), start)

"""Audio models whose weights people have: MERT as a HuBERT, CLaMP 3's audio tower as a BERT over it.

Built from the classes of `transformers`; weights are safetensors or read with `weights_only`, from a local
folder or the user's own hub cache. No code of a model's repository is run and nothing is downloaded.
MERT: Li et al. 2024 (ICLR), arXiv 2306.00107. CLaMP 3: Wu et al. 2025, arXiv 2502.10362.
Shape suffixes: W windows, N samples, L layers, F frames, E width, T tokens.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amrs.audio import extra
from amrs.runs import RunError

RATE = 24_000
_REFUSED = {"feature_extractor_cqt": (False, None), "deepnorm": (False, None)}
"""Settings of MERT that HuBERT does not have, with the values that change nothing. (`attention_relax` is not
among them: it rescales the softmax's argument against overflow and leaves the softmax as it is.)"""
_NOT_WEIGHTS = {"masked_spec_embed"}
"""Used in pre-training only."""


def find_weights(name: str) -> Path:
    """The folder `name`, or the folder of the hub repository `name` in the user's cache."""
    if Path(name).is_dir():
        return Path(name)
    hub = extra("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except Exception as error:
        raise RunError(
            f"embed.weights={name}: no such folder, and not in the Hugging Face cache. Nothing is downloaded "
            f"unasked: get it with `hf download {name}`, or give the folder that holds config.json and "
            "model.safetensors or pytorch_model.bin"
        ) from error


class Mert(nn.Module):
    """A HuBERT over 24 kHz audio."""

    def __init__(self, folder: Path, layer: int | None, pooling: Literal["mean", "max"]) -> None:
        super().__init__()
        transformers = extra("transformers")
        config = _hubert_config(folder, transformers)
        if layer is not None and not -config.num_hidden_layers <= layer + 1 <= config.num_hidden_layers + 1:
            raise RunError(f"embed.layer={layer}: {folder} has layers 0 to {config.num_hidden_layers}")
        transformers.utils.logging.disable_progress_bar()
        try:
            self.model, info = transformers.HubertModel.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False, weights_only=True,
                output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(f"embed.weights: {folder}: {error}") from error
        lacking = set(info["missing_keys"]) - _NOT_WEIGHTS
        if lacking:  # they would be random numbers
            raise RunError(
                f"embed.weights: {folder} lacks {len(lacking)} weights, {sorted(lacking)[0]} for one"
            )
        self.model.eval()
        self.layer, self.pooling = layer, pooling
        self.normalise: bool = _json(folder / "preprocessor_config.json").get("do_normalize", True)
        rate = _json(folder / "preprocessor_config.json").get("sampling_rate", RATE)
        if rate != RATE:
            raise RunError(f"embed.weights: {folder} is for {rate} Hz, MERT for {RATE} Hz")

    @torch.inference_mode()
    def forward(self, samples_WN: Tensor) -> Tensor:
        """One vector (W, E) a window: a layer (or the mean of all L + 1) pooled over its frames."""
        hidden = self.model(samples_WN, output_hidden_states=True).hidden_states
        states_LWFE = torch.stack(hidden) if self.layer is None else hidden[self.layer][None]
        pooled_LWE = states_LWFE.mean(2) if self.pooling == "mean" else states_LWFE.amax(2)
        return pooled_LWE.mean(0)


def _hubert_config(folder: Path, transformers: Any) -> Any:
    if not (folder / "config.json").exists():
        raise RunError(f"embed.weights: {folder} holds no config.json: give the folder of a MERT")
    given = _json(folder / "config.json")
    for key, harmless in _REFUSED.items():
        if given.get(key) not in harmless:
            raise RunError(f"embed.weights: {folder} has {key}={given[key]}, which a HuBERT has not")
    known = set(transformers.HubertConfig().to_dict()) - {"model_type", "architectures", "auto_map"}
    return transformers.HubertConfig(**{key: value for key, value in given.items() if key in known})


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


class ClampAudioTower(nn.Module):
    """CLaMP 3's audio tower: a BERT over the windows of a track, pooled and projected."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        transformers = extra("transformers")
        state = _state(file)
        bert = {k.removeprefix("audio_model."): v for k, v in state.items() if k.startswith("audio_model.")}
        project = {k.removeprefix("audio_proj."): v for k, v in state.items() if k.startswith("audio_proj.")}
        try:
            self.model = transformers.BertModel(_bert_config(bert, transformers))
            out, width = project["weight"].shape
            self.proj = nn.Linear(width, out)
            bert.pop("embeddings.position_ids", None)  # a buffer of older versions
            self.model.load_state_dict(bert)
            self.proj.load_state_dict(project)
        except (KeyError, RuntimeError) as error:
            raise RunError(f"embed.clamp3_weights={file}: not CLaMP 3's audio tower: {error}") from error
        self.length: int = self.model.config.max_position_embeddings
        self.eval()

    @torch.inference_mode()
    def forward(self, window_WE: Tensor) -> Tensor:
        """One vector (E,) a track.

        A zero vector stands before and after the windows. What is longer than the model's positions is cut
        into segments, the last of which reaches back to be full; a segment weighs as many tokens as it adds.
        """
        zero_1E = torch.zeros_like(window_WE[:1])
        token_TE = torch.cat([zero_1E, window_WE, zero_1E])
        starts = range(0, len(token_TE), self.length)
        segments = [token_TE[start : start + self.length] for start in starts]
        added = torch.tensor([float(len(segment)) for segment in segments], device=window_WE.device)
        segments[-1] = token_TE[-self.length :]
        pooled = [self.model(inputs_embeds=s[None]).last_hidden_state[0].mean(0) for s in segments]
        embedding_E: Tensor = (self.proj(torch.stack(pooled)) * added[:, None]).sum(0) / added.sum()
        return embedding_E


def _bert_config(state: dict[str, Tensor], transformers: Any) -> Any:
    """The shape of a BERT, from its weights; heads are 64 wide, as in CLaMP 3."""
    positions, width = state["embeddings.position_embeddings.weight"].shape
    layers = {key.split(".")[2] for key in state if key.startswith("encoder.layer.")}
    return transformers.BertConfig(
        vocab_size=len(state["embeddings.word_embeddings.weight"]), hidden_size=width,
        num_hidden_layers=len(layers), num_attention_heads=max(1, width // 64),
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=positions,
    )  # fmt: skip


def _state(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint."""
    if not file.is_file():
        raise RunError(
            f"embed.clamp3_weights={file}: no such file. Get a checkpoint of CLaMP 3 from the hub "
            "(`hf download sander-wood/clamp3`) and give its .pth file"
        )
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a pickle that is refused or damaged raises
        raise RunError(f"embed.clamp3_weights={file}: cannot be read as tensors alone: {error}") from error
    state: dict[str, Tensor] = found.get("model", found)
    return state

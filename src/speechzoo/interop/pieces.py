"""A SentencePiece vocabulary with special tokens, cut the way transformers 4.31 cut LLaSM's prompts.

Later transformers tokenise these files differently (no BOS, other blanks), so the ids are made from the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechzoo.system.files import read_json
from speechzoo.text import CLIP
from speechzoo.types import AUDIO


class PieceTokenizer:
    """Text to ids and back; the part of a Hugging Face tokenizer's interface that prompts use.

    Args:
        folder: holds `tokenizer.model`, and optionally added_tokens.json, special_tokens_map.json and
            tokenizer_config.json.
        strip: lose blanks beside special tokens, as transformers' slow tokenizers do.

    Raises:
        FileNotFoundError, ValueError: if `tokenizer.model` is missing or no SentencePiece model.
    """

    def __init__(self, folder: str | Path, strip: bool = False) -> None:
        root = Path(folder)
        file = root / "tokenizer.model"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file (LLaSM's prompts need the SentencePiece model)")
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise ValueError("LLaSM's prompts need SentencePiece: pip install sentencepiece") from error
        self.model = SentencePieceProcessor()
        try:
            self.model.load(str(file))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file}: not a SentencePiece model ({str(error).splitlines()[0][:160]})") from error
        self.strip = strip
        added = read_json(root / "added_tokens.json") if (root / "added_tokens.json").is_file() else {}
        control = [self.model.unk_id(), self.model.bos_id(), self.model.eos_id()]
        self.special: dict[str, int] = {self.model.id_to_piece(i): i for i in control if i >= 0}
        self.special.update({name: int(i) for name, i in added.items()})
        config, names = self._settings(root, "tokenizer_config.json"), self._settings(root, "special_tokens_map.json")
        # What `encode` puts first is fixed when the fast tokenizer is made, from tokenizer_config.json; the attribute
        # `bos_token_id`, which the slow tokenizer and the baichuan template use, is then replaced by the map's.
        first = self._id(config.get("bos_token"), self.model.bos_id())
        self.bos_token_id = self._id(names.get("bos_token"), first)
        self.encode_bos = self.bos_token_id if strip else first
        self.eos_token_id = self._id(names.get("eos_token") or config.get("eos_token"), self.model.eos_id())
        self.pad_token_id = self._id(names.get("pad_token") or config.get("pad_token"), None)
        self.add_bos = bool(config.get("add_bos_token", True))
        self.eos_token = self.model.id_to_piece(self.eos_token_id)
        ordered = sorted([*self.special, CLIP], key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, ordered)) + ")")

    @staticmethod
    def _settings(root: Path, name: str) -> dict[str, Any]:
        held = read_json(root / name) if (root / name).is_file() else {}
        return {key: value["content"] if isinstance(value, dict) else value for key, value in held.items()}

    def _id(self, token: str | None, default: Any) -> Any:
        return default if not token else self.special.get(token, default)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text; special tokens in it become their ids, `CLIP` becomes AUDIO."""
        ids: list[int] = [self.encode_bos] if add_special_tokens else []
        pieces = self._cut.split(text)
        for index, piece in enumerate(pieces):
            if index % 2:
                ids.append(AUDIO if piece == CLIP else self.special[piece])
                continue
            if self.strip:
                piece = piece.lstrip() if index else piece
                piece = piece.rstrip() if index + 1 < len(pieces) else piece
            ids += self.model.encode(piece)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; special tokens are left out unless asked for."""
        names = {i: name for name, i in self.special.items()}
        size, text, run = self.model.get_piece_size(), "", []
        for i in [int(i) for i in ids]:
            if 0 <= i < size and i not in names:
                run.append(i)
                continue
            if not skip_special_tokens:
                text, run = text + self.model.decode(run) + names.get(i, ""), []
        return text + str(self.model.decode(run))

    def convert_tokens_to_ids(self, tokens: str | Sequence[str] | None) -> Any:
        """Ids of special tokens.

        Raises:
            ValueError: naming a token that is not in added_tokens.json.
        """
        if isinstance(tokens, str):
            if tokens not in self.special:
                raise ValueError(f"the tokenizer has no {tokens} (added_tokens.json: {', '.join(self.special)})")
            return self.special[tokens]
        return [self.convert_tokens_to_ids(token) for token in tokens or []]

    def get_vocab(self) -> dict[str, int]:
        """All pieces and special tokens with their ids."""
        pieces = [self.model.id_to_piece(i) for i in range(self.model.get_piece_size())]
        return {**dict(zip(pieces, range(len(pieces)), strict=True)), **self.special}

    def __len__(self) -> int:
        return max([self.model.get_piece_size() - 1, *self.special.values()]) + 1

"""Data: manifests, checks, batches, and the LightningDataModule that joins them."""

from speechzoo.data.collate import Item, collate
from speechzoo.data.dataset import ConversationDataset, encode_batch
from speechzoo.data.features import FeatureCache
from speechzoo.data.instructions import ASR_INSTRUCTIONS, asr_messages
from speechzoo.data.latents import LatentDataModule
from speechzoo.data.manifest import ManifestError, Problem, Record, read_manifest
from speechzoo.data.module import SpeechDataModule
from speechzoo.data.sampler import EvalSampler, TokenBudgetSampler
from speechzoo.data.window import with_windows

__all__ = [
    "ASR_INSTRUCTIONS",
    "ConversationDataset",
    "EvalSampler",
    "FeatureCache",
    "Item",
    "LatentDataModule",
    "ManifestError",
    "Problem",
    "Record",
    "SpeechDataModule",
    "TokenBudgetSampler",
    "asr_messages",
    "collate",
    "encode_batch",
    "read_manifest",
    "with_windows",
]

"""The numbers that the papers and their released configurations give, by recipe; see `tests/test_recipes.py`."""

from __future__ import annotations

from typing import Any

LLASM = {
    "class_path": "speechzoo.models.LLaSM",
    "init_args.encoder.class_path": "speechzoo.encoders.WhisperQueries",
    "init_args.encoder.init_args.model": "large-v2",
    "init_args.encoder.init_args.num_queries": 64,
    "init_args.adaptor.class_path": "speechzoo.adaptors.Linear",
    "init_args.adaptor.init_args.stack": 1,
    "init_args.llm.init_args.model": "LinkSoul/Chinese-Llama-2-7b",
    "init_args.prompt.init_args.audio_tokens": ["<au_start>", "<au_end>"],
    "init_args.prompt.init_args.max_length": 2048,
    "init_args.optimizer.init_args.weight_decay": 0.0,
    "init_args.lr_scheduler.init_args.warmup_ratio": 0.03,
}
LLAMA_OMNI = {
    "class_path": "speechzoo.models.LLaMAOmni",
    "init_args.encoder.class_path": "speechzoo.encoders.WhisperEncoder",
    "init_args.encoder.init_args.model": "large-v3",
    "init_args.encoder.init_args.window": "padded",
    "init_args.adaptor.class_path": "speechzoo.adaptors.ConcatMLP",
    "init_args.adaptor.init_args.stack": 5,
    "init_args.adaptor.init_args.hidden_dim": 2048,
    "init_args.llm.init_args.model": "meta-llama/Llama-3.1-8B-Instruct",
    "init_args.unit_decoder.init_args.num_units": 1000,
    "init_args.unit_decoder.init_args.upsample": 25,
    "init_args.unit_decoder.init_args.dim": 4096,
    "init_args.unit_decoder.init_args.num_layers": 2,
    "init_args.unit_decoder.init_args.num_heads": 32,
    "init_args.unit_decoder.init_args.ffn_dim": 11008,
    "init_args.unit_decoder.init_args.align": "predict",
    "init_args.lr_scheduler.class_path": "speechzoo.training.WarmupCosine",
    "init_args.lr_scheduler.init_args.warmup_ratio": 0.03,
}
LLAMA_OMNI2 = {
    **{key: value for key, value in LLAMA_OMNI.items() if "unit_decoder" not in key},
    "class_path": "speechzoo.models.LLaMAOmni2",
    "init_args.llm.init_args.model": "Qwen/Qwen2.5-7B-Instruct",
    "init_args.unit_decoder.class_path": "speechzoo.units.ARUnitDecoder",
    "init_args.unit_decoder.init_args.model": "Qwen/Qwen2.5-0.5B",
    "init_args.unit_decoder.init_args.num_units": 6561,
    "init_args.unit_decoder.init_args.read": 3,
    "init_args.unit_decoder.init_args.temperature": 1.0,
}
STATES = ["^encoder\\.", "^adaptor\\.", "^llm\\."]
WRITES = {"init_args.unit_decoder.init_args.write": 10, "init_args.unit_decoder.init_args.max_units": 1024}
PAPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # The rates of LLaSM are not in its paper: those of LLaVA, whose code it derives from.
    "llasm/pretrain.yaml": (
        {
            **LLASM,
            "init_args.freeze": ["^encoder\\.", "^llm\\.lm\\."],
            "init_args.optimizer.init_args.lr": 2e-3,
            "init_args.init_from": None,
        },
        {"max_epochs": 1, "global_batch": 128},
    ),
    "llasm/finetune.yaml": (
        {
            **LLASM,
            "init_args.freeze": ["^encoder\\."],
            "init_args.optimizer.init_args.lr": 2e-5,
            "init_args.init_from": ["checkpoints/llasm_pretrain"],
        },
        {"max_epochs": 1, "global_batch": 128},
    ),
    "llama_omni/stage1.yaml": (
        {
            **LLAMA_OMNI,
            "init_args.freeze": ["^encoder\\.", "^unit_decoder\\."],
            "init_args.optimizer.init_args.lr": 2e-5,
            "init_args.loss_weights": {"ctc": 0.0},
        },
        {"max_epochs": 3, "global_batch": 32, "devices": 4},
    ),
    "llama_omni/stage2.yaml": (
        {
            **LLAMA_OMNI,
            "init_args.freeze": ["^encoder\\.", "^adaptor\\.", "^llm\\."],
            "init_args.optimizer.init_args.lr": 2e-4,
            "init_args.loss_weights": {"lm": 0.0},
            "init_args.init_from": ["checkpoints/llama_omni_stage1"],
        },
        {"max_epochs": 3, "global_batch": 32, "devices": 4},
    ),
    "llama_omni2/stage1.yaml": (
        {
            **LLAMA_OMNI2,
            "init_args.freeze": ["^encoder\\.", "^unit_decoder\\."],
            "init_args.optimizer.init_args.lr": 5e-5,
            "init_args.loss_weights": {"unit": 0.0},
        },
        {"max_epochs": 3, "global_batch": 32, "devices": 4},
    ),
    "llama_omni2/stage1b.yaml": (
        {
            **LLAMA_OMNI2,
            **WRITES,
            "init_args.unit_decoder.init_args.fuse": False,
            "init_args.freeze": [*STATES, "^unit_decoder\\.(input_proj|gate)\\."],
            "init_args.optimizer.init_args.lr": 5e-4,
            "init_args.loss_weights": {"lm": 0.0},
            "init_args.init_from": ["checkpoints/llama_omni2_stage1"],
        },
        {"max_epochs": 5, "global_batch": 32, "devices": 4},
    ),
    "llama_omni2/stage2.yaml": (
        {
            **LLAMA_OMNI2,
            **WRITES,
            "init_args.unit_decoder.init_args.fuse": True,
            "init_args.freeze": STATES,
            "init_args.optimizer.init_args.lr": 1e-3,
            "init_args.loss_weights": {"lm": 0.0},
            "init_args.init_from": ["checkpoints/llama_omni2_stage1", "checkpoints/llama_omni2_stage1b"],
        },
        {"max_epochs": 1, "global_batch": 32, "devices": 4},
    ),
    # No paper: v0.4.1_config.yaml of the released code, which does not say on how many devices.
    "ultravox/train.yaml": (
        {
            "class_path": "speechzoo.models.Ultravox",
            "init_args.temperature": 2.0,
            "init_args.encoder.init_args.model": "large-v3-turbo",
            "init_args.encoder.init_args.window": "trimmed",
            "init_args.adaptor.class_path": "speechzoo.adaptors.StackSwiGLU",
            "init_args.adaptor.init_args.stack": 8,
            "init_args.adaptor.init_args.hidden_dim": 4096,
            "init_args.adaptor.init_args.norm_init": 0.4,
            "init_args.adaptor.init_args.norm_mid": False,
            "init_args.llm.init_args.model": "meta-llama/Llama-3.1-8B-Instruct",
            "init_args.freeze": ["^encoder\\.", "^llm\\."],
            "init_args.loss_weights": {"lm": 0.0, "kl": 1.0, "kl_end": 1.0},
            "init_args.optimizer.init_args.lr": 1e-3,
            "init_args.lr_scheduler.init_args.final_ratio": 0.1,
        },
        {"max_epochs": 2, "global_batch": 12 * 2 * 8},
    ),
}

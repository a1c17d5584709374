"""BibTeX that more than one loss cites."""

TINYBERT = """@inproceedings{jiao2020tinybert,
  title={{TinyBERT}: Distilling {BERT} for Natural Language Understanding},
  author={Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and Jiang, Xin and Chen, Xiao and
    Li, Linlin and Wang, Fang and Liu, Qun},
  booktitle={Findings of EMNLP},
  year={2020}
}"""

MINILM = """@inproceedings{wang2020minilm,
  title={{MiniLM}: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers},
  author={Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}"""

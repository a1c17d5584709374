"""`Trainer` subclasses: plain fine-tuning done right, distillation, and BERT-of-Theseus."""

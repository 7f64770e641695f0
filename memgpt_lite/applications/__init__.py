"""What a memory is good for: five applications on real data, one module and one notebook each.

    text_generation        08    a novel, continued                    bits per character
    translation            09    dates and sentences, English–Chinese  exact match, BLEU, chrF
    semantic_matching      10    a verse and its other translation     top-1, mean reciprocal rank
    summarising            11    a docstring and its first line        ROUGE-L
    question_answering     12    facts hidden in a novel               exact match by length and depth

Each module holds its data and their split, the examples for training, the training, the measuring, and the functions that a
reader calls on a text of their own. `python -m memgpt_lite.checkpoints.train NAME` trains a model again.
"""

import importlib

MODULE_OF = {  # trained model → the module that has its recipe
    "text_generation_en": "text_generation",
    "text_generation_zh": "text_generation",
    "translation_dates": "translation",
    "translation_sentences": "translation",
    "semantic_matching": "semantic_matching",
    "summarising": "summarising",
    "question_answering": "question_answering",
}


def recipe(name: str):
    """How a trained model is made (`memgpt_lite.checkpoints.recipe.Recipe`)."""
    return importlib.import_module(f"{__name__}.{MODULE_OF[name]}").RECIPES[name]

"""Published figures on MovieLens 100k, by protocol; those of one are never set beside those of the other."""

from __future__ import annotations

SAMPLED_SOURCE = (
    "Ferrari Dacrema, Boglio, Cremonesi, Jannach (2021), A Troubling Analysis of Reproducibility and Progress in "
    "Recommender Systems Research, ACM TOIS 39(2), additional material, table 98: MovieLens 100k, split of DMF"
)
SAMPLED = {
    "random": {"hit_rate": 0.0914, "ndcg": 0.0416},
    "popular": {"hit_rate": 0.4145, "ndcg": 0.2342},
    "item_item": {"hit_rate": 0.5781, "ndcg": 0.3363},
    "als": {"hit_rate": 0.6142, "ndcg": 0.3691},
    "EASE": {"hit_rate": 0.6089, "ndcg": 0.3571},
    "SLIM": {"hit_rate": 0.6238, "ndcg": 0.3765},
}
"""By source as named here; item_item is their ItemKNN CF cosine, als their iALS, SLIM the ElasticNet one."""

FULL_SOURCE = "Recommenders (recommenders-team), benchmark on MovieLens 100k, 75/25 split by user, k = 10"
FULL = {
    "SAR": {"ndcg": 0.382, "precision": 0.331, "recall": 0.176},
    "BPR": {"ndcg": 0.442, "precision": 0.388, "recall": 0.213},
    "BiVAE": {"ndcg": 0.475, "precision": 0.412, "recall": 0.219},
}

"""Exact retrieval evaluation for person re-identification: CMC, mAP, mINP and ranked lists.

Nothing here holds or sorts the Q x G distance matrix. CMC, AP and INP need only the rank of
every good image, which is one more than the number of listed gallery images before it, so
gallery tiles are streamed and images are counted. Other protocols are in `protocols`, bootstrap
intervals in `intervals`, exact lists of the nearest in `nearest`, re-ranking in `reranking`, query expansion
in `expansion`.
"""

from maskreid_dist.errors import RetrievalError
from maskreid_dist.retrieval.evaluate import evaluate_retrieval
from maskreid_dist.retrieval.expansion import Expansion, expand_queries
from maskreid_dist.retrieval.nearest import Neighbours, nearest
from maskreid_dist.retrieval.ranklist import RankList, rank_list
from maskreid_dist.retrieval.reranking import evaluate_reranked
from maskreid_dist.retrieval.reranking_options import ReRanking
from maskreid_dist.retrieval.result import RetrievalResult

__all__ = [
    "Expansion",
    "Neighbours",
    "RankList",
    "ReRanking",
    "RetrievalError",
    "RetrievalResult",
    "evaluate_reranked",
    "evaluate_retrieval",
    "expand_queries",
    "nearest",
    "rank_list",
]

"""Something to look at: the HTML report and the picture of ranked lists."""

from maskreid_dist.report.html import RunReport, write_report
from maskreid_dist.report.pictures import RankedImage, RankedQuery, ranked_list_figure, select_queries

__all__ = ["RankedImage", "RankedQuery", "RunReport", "ranked_list_figure", "select_queries", "write_report"]

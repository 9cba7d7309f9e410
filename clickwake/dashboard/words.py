"""The pages' words. English is the key; tests find what has no Chinese."""

from __future__ import annotations

import re

CHINESE = {
    "title": "标题", "Live": "实时", "Segments": "客群", "Churn": "流失", "Recommendations": "推荐", "Dead letters": "死信",
    "Users": "用户", "events": "事件", "users": "用户", "recommendations": "推荐", "alerts": "预警",
    "dead letters": "死信",
    "Events per 10 seconds, as the broker took them (UTC)": "每 10 秒事件数（按 Kafka 接收时间，UTC）",
    "Funnel, the last 30 days with events": "转化漏斗（最近 30 天）", "viewed": "浏览", "added to cart": "加入购物车",
    "checkout": "结算", "ordered": "下单", "Active users": "活跃用户", "new": "新用户", "returning": "回访用户",
    "day": "日期", "segment": "客群", "members": "成员数", "entered, 1 day": "一天内进入", "left, 1 day": "一天内离开",
    "changed (UTC)": "最近变化（UTC）", "Members of": "客群成员：", "as of (UTC)": "截至（UTC）", "user": "用户",
    "entered (UTC)": "进入时间（UTC）", "left (UTC)": "离开时间（UTC）", "because": "依据",
    "choice": "选择", "meaning": "含义", "Choose a segment to see who is in it.": "选择一个客群以查看成员。",
    "No segments yet: write rules into": "尚无客群：请将规则写入", "The rules cannot be used": "规则无法使用",
    "The release cannot be read": "无法读取已发布的模型",
    "Alerts raised, newest first": "已发出的流失预警（最新在前）", "at (UTC)": "时间（UTC）", "probability": "概率",
    "days": "天数", "reasons": "原因", "outcome": "结果", "How often alerts were right": "预警准确率", "model": "模型",
    "raised": "已发出", "judged": "已判定", "right": "正确", "precision": "准确率", "as said": "预测概率",
    "pending": "待定", "Hit rate of recommendations, by model": "各模型的推荐命中率", "within": "时限",
    "emissions": "推荐次数", "hits": "命中", "hit rate": "命中率",
    "Hit rate within a day, over time": "一天内命中率走势",
    "Answers of the read API, by scenario": "读取接口的回答（按场景）", "scenario": "场景", "answers": "回答",
    "shown": "已展示", "clicked": "已点击", "added": "已加购",
    "What could not be processed, by cause": "无法处理的输入（按原因）", "kind": "类型", "where": "位置",
    "why": "原因说明", "letters": "数量", "newest (UTC)": "最新（UTC）", "example": "示例",
    "Mend and send again with": "修复并重发：", "Find a user by id": "按编号查找用户", "Look": "查看",
    "Known since (UTC)": "首次出现（UTC）", "last seen (UTC)": "最近出现（UTC）",
    "orders": "订单", "spent": "消费", "active days": "活跃天数",
    "advertising": "广告", "refused": "已拒绝", "allowed": "已同意",
    "days of silence": "沉默天数", "gone with probability": "流失概率",
    "Chance of still being away, by days of silence": "沉默天数与仍未返回的概率", "What is recommended now": "当前推荐",
    "item": "商品", "score": "得分", "source": "来源", "because of": "因为", "place": "排名", "of": "/",
    "Why, or why not: an item's id": "为何推荐或不推荐：商品编号", "not among those to choose from": "不在可选范围内",
    "Nearest to the user's own vector": "与该用户自身向量最接近的商品", "cosine": "余弦相似度",
    "Items like the last one dealt with": "与最近接触的商品相似的商品", "Timeline": "时间线", "event": "事件",
    "revenue": "收入", "Forget this user…": "删除该用户…",
    "Erase": "确认删除", "Cancel": "取消",
    "The request was taken: the erasure worker carries it out.": "请求已提交：由删除进程执行。",
    "The request was not taken": "请求未被接受", "Nothing is known of this user.": "没有该用户的数据。",
    "The read API does not answer": "读取接口无响应", "ClickHouse does not answer": "ClickHouse 无响应",
    "ClickHouse takes too long": "ClickHouse 耗时过长", "ClickHouse answers with an error": "ClickHouse 返回错误",
    "Tenant": "租户", "no tenant": "无租户", "Other tenants": "其他租户", "Dark or light": "深色或浅色",
    "Nothing here yet.": "暂无数据。",
    "Models": "模型", "No released model has served anything yet.": "尚无已发布的模型提供过服务。", "state": "状态",
    "learned until (UTC)": "训练数据截止（UTC）", "NDCG@10, held out": "NDCG@10（留出集）",
    "recall@20 of new items": "新商品 Recall@20",
    "served last (UTC)": "最近服务（UTC）", "parent": "前一版本", "Model versions": "模型版本", "in use": "使用中",
    "served before": "曾经使用", "not served": "未使用", "PSI": "PSI", "another population": "总体已变化",
    "Events now against those that the model learned from": "当前事件与模型训练事件的差异",
    "Less than a day of events since it learned, or too few: nothing can be said yet.":
        "训练后的事件不足一天或数量太少，暂无法判断。",
    "Which events come": "事件类型分布", "Time between two events of a user": "同一用户相邻事件的间隔",
    "within its limit": "在限度内", "beyond its limit: train again": "超出限度：请重新训练",
    "Choose a cause to try its fix: nothing is sent by that.": "选择一个原因以试行修复：不会发送任何内容。",
    "would be taken once mended": "条修复后可被接受", "unchanged": "未改动", "Send again": "重新发送",
    "What is older than Kafka keeps dead letters is known, but cannot be sent again.":
        "超过 Kafka 死信保留期的内容仍会列出，但无法重发。",
    "Of no tenant: what came without a key": "不属于任何租户：没有键的内容",
    "Nothing was sent": "未发送任何内容", "Sent again": "已重新发送", "Kafka does not answer": "Kafka 无响应",
    "Promotions": "促销", "More orders a user than held out, with interval":
        "人均下单率较对照组的提升（含置信区间）",
    "helps": "有效", "harms": "有害", "not known yet": "尚不确定", "placement": "展示位", "users offered": "投放用户",
    "of these ordered": "其中下单率", "users held out": "对照用户", "of the held-out ordered": "对照下单率",
    "effect": "效果",
    "at least": "下限", "at most": "上限", "so it": "结论", "Do offers help": "优惠是否有效",
    "Clicks an impression, with its interval": "点击率（含置信区间）", "nothing": "未展示", "hold-out": "对照组",
    "offer": "优惠",
    "impressions": "展示次数", "click rate": "点击率", "order rate": "下单率", "Offers beside each other": "各优惠对比",
    "Spent a day": "每日花费", "spent that day": "当日花费", "budget a day": "每日预算", "spent so far": "累计花费",
    "budget in all": "总预算", "impressions so far": "累计展示", "impressions budgeted": "展示预算",
    "of the budget used": "预算使用率", "Spent against budgets": "花费与预算",
    "Satisfaction": "满意度", "opinions": "评价数", "satisfaction": "满意度", "if few opinions count little": "收缩后满意度",
    "unhappy": "不满意比例", "tickets": "工单", "Items, the least satisfying first": "商品（满意度最低在前）",
    "brand": "品牌", "items": "商品数", "Brands, the least satisfying first": "品牌（满意度最低在前）", "fell": "满意度下降",
    "has more tickets a day": "每日工单增多", "has fewer tickets a day again": "每日工单已回落",
    "rose again": "满意度回升", "since": "自", "What fell or rose, newest first": "满意度变化（最新在前）", "half": "一半",
    "Satisfaction of the brands spoken of most, by week": "评价最多品牌的每周满意度",
    "in now": "目前所在客群", "Sign in": "登录", "Sign out": "退出", "Name": "用户名", "Password": "密码",
    "Name or password is wrong.": "用户名或密码错误。", "Too many attempts. Try again later.": "尝试次数过多，请稍后再试。",
    "Skip to content": "跳到正文", "Pages": "页面", "Copy": "复制", "Close": "关闭",
    # what the records name by a code
    "correct": "正确", "wrong": "错误", "1h": "1 小时", "1d": "1 天", "7d": "7 天",
    "for_you": "为你推荐", "again": "再次购买", "similar": "相似商品", "complements": "搭配商品", "popular": "热门",
    "trending": "上升", "due": "到期", "due_categories": "到期类目", "rank": "排序",
    "personal": "个人习惯", "links": "关联", "rules": "先后规则", "popularity": "热度", "pinned": "置顶",
    "undecodable": "无法解码", "unprocessable": "无法处理", "too_large": "过大", "dropped": "有意略去",
    "sink_rejected": "写入被拒",
    # what the built-in segments are
    "first seen within a week": "一周内首次出现", "seen within two weeks": "两周内出现过",
    "silent for two weeks": "沉默超过两周", "silent for two months": "沉默超过两个月",
    "never bought": "从未购买", "bought on two days or more": "在两天或以上购买过",
    "bought lately and often": "近期购买且次数多", "bought often within three months": "三个月内多次购买",
    "bought lately, not often": "近期购买但次数少", "bought often, not for three months": "曾多次购买，三个月未购买",
    "bought once or twice, not for a month": "购买过一两次，一个月未购买",
    "bought once or twice, not for three months": "购买过一两次，三个月未购买",
    "no order for half a year": "半年没有订单",
} | {
    f"of the buyers' fifths by {field} the {fifth}": f"购买者按{by}分五档：{place}"
    for field, by in (("last order", "最近下单"), ("orders", "订单数"), ("revenue", "消费额"))
    for fifth, place in (("worst", "最低档"), ("second", "第二档"), ("middle", "中间档"), ("fourth", "第四档"),
                         ("best", "最高档"))
}  # fmt: skip

# what is said in sentences: of an alert (stream/alerts.py), of an item (stream/core/ranking/why.py), by the read API.
# A pattern of the English, and the Chinese with its groups
SENTENCES = {
    r"silent for ([\d.]+) days, usually back after ([\d.]+)": r"已沉默 \1 天，通常 \2 天后回访",
    r"silent for ([\d.]+) days, never came back before": r"已沉默 \1 天，此前从未回访",
    r"(\d+) orders? in (\d+) active days?": r"\2 个活跃日中有 \1 个订单",
    r"(\d+) orders? in (\d+) or more active days": r"\2 个或更多活跃日中有 \1 个订单",
    r"the catalog does not have it": "商品目录中没有它", r"blocked in the catalog": "在商品目录中被屏蔽",
    r"out of stock": "缺货", r"removed from the catalog": "已从商品目录移除", r"the user bought it": "该用户已购买",
    r"the user dealt with it": "该用户已接触过",
    r"its place was given to an item that nobody knows yet, to learn about it":
        "其位置让给了尚无人了解的商品，以便了解它",
    r"its category has (\d+) before it, more are not shown at once": r"同类商品已有 \1 个排在其前，不再同时展示",
    r"its place is (\d+), but pinned items come first and (\d+) are shown": r"排名第 \1，但置顶商品优先，只展示 \2 个",
    r"its place is (\d+), (\d+) are shown": r"排名第 \1，只展示 \2 个",
    r"The first ([\d,]+) of ([\d,]+)\.": r"共 \2 条，仅显示前 \1 条。",
    r"The newest ([\d,]+) of ([\d,]+) are tried\.": r"共 \2 条，试行最新的 \1 条。",
    r"Everything about user (.*) of tenant (.*) will be erased, everywhere\. This cannot be undone\.":
        r"租户 \2 的用户 \1 的所有数据将从所有位置删除，且无法恢复。",
    r"Item (['\"])(.*)\1 is in no catalog and in no event\.": r"商品目录和事件中都没有商品 \2。",
}  # fmt: skip


def language(asked: str, accepted: str) -> str:
    """The visitor's: what the address says, else what the browser asks for first (`Accept-Language`).

    >>> language("en", "zh-CN,zh;q=0.9"), language("", "zh-CN,zh;q=0.9"), language("", "de,zh;q=0.5"), language("xx", "zh")
    ('en', 'zh', 'en', 'en')
    """
    return "zh" if (asked or accepted.strip()[:2].lower()) == "zh" else "en"


class Words:
    """Text in one language; what has no Chinese stays as it is.

    >>> Words("zh")("Live"), Words("en")("Live"), Words("zh")("silent for 9.0 days, never came back before")
    ('实时', 'Live', '已沉默 9.0 天，此前从未回访')
    """

    def __init__(self, language: str) -> None:
        self.language = "zh" if language == "zh" else "en"

    def __call__(self, text: str) -> str:
        if self.language == "en" or text in CHINESE:
            return text if self.language == "en" else CHINESE[text]
        said = ((re.fullmatch(pattern, text), chinese) for pattern, chinese in SENTENCES.items())
        return next((match.expand(chinese) for match, chinese in said if match), text)

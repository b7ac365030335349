"""Writes the demo's dialogues: phone calls and chats, fraud and honest, Chinese and English.

    python3 demo/make_dialogues.py

The phrases stand in demo/scenarios/<language>/<topic>.txt, one file per topic:

    channel call | chat | both
    <pool>                      open, story, fraud, press, honest, ease, why (replies.txt has pools of its own)
    = phrase                    a phrase of the train split
    + phrase                    of the calibration split
    * phrase                    of the test split
    = (role role) phrase        only in dialogues where the caller plays one of these roles
    {a|b} is one of the parts, [slot] is filled once per dialogue; under "why", + and - are the reasons
    given for fraud and for honesty.

Fraud and honest dialogues of a topic share openings and stories, so only what is asked tells them apart.
Every phrase, of caller and user alike, belongs to one split: no test template was seen in training.
"""

import argparse
import hashlib
import json
import pathlib
import random
import re
import typing

HERE = pathlib.Path(__file__).resolve().parent
SPLIT_OF_MARK = {"=": "train", "+": "calibration", "*": "test"}
SYSTEM_PROMPT = "You check dialogues for fraud."
INSTRUCTION = {
    "zh": "下面的对话是诈骗吗？用JSON回答is_fraud和reason。",
    "en": "Is the dialogue below a fraud? Answer in JSON with is_fraud and reason.",
}
SPEAKERS = {
    "zh": {"call": ("来电", "我"), "chat": ("对方", "我")},
    "en": {"call": ("Caller", "Me"), "chat": ("Sender", "Me")},
}
SHARE_OF_CHINESE = 0.7
MAX_TURNS = 12

NAMES_ZH = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"
GIVEN_ZH = ["伟", "芳", "娜", "敏", "静", "秀英", "丽", "强", "磊", "洋", "艳", "勇", "军", "杰", "娟", "涛", "明", "超"]
NAMES_EN = ["Smith", "Brown", "Taylor", "Wilson", "Evans", "Clark", "Walker", "Young", "Turner", "Hill"]
GIVEN_EN = ["Anna", "Mark", "Lucy", "Tom", "Grace", "Paul", "Emma", "David", "Helen", "Peter", "Rose", "James"]
SLOT_CHOICES = {
    "zh": {
        "bank": ["工商银行", "建设银行", "农业银行", "招商银行", "中国银行", "交通银行", "邮储银行"],
        "city": ["北京", "上海", "广州", "深圳", "杭州", "成都", "武汉", "西安", "南京", "重庆", "长沙", "青岛"],
        "station": ["城东", "新华路", "人民路", "南湖", "朝阳", "滨江"],
        "platform": ["淘优", "京品", "拼实惠", "快购", "小橙书", "易选"],
        "app": ["微聊", "快视频", "支付通", "乐游", "云盘"],
        "company": ["华信", "盛达", "中泰", "恒丰", "瑞安", "天成"],
        "courier": ["顺达快递", "圆捷速递", "中远快递", "韵通快递", "极风物流"],
        "airline": ["东方航空", "南方航空", "海蓝航空", "云翔航空"],
        "shop": ["美家", "百惠", "鲜多多", "优衣坊", "乐购坊", "华联"],
        "goods": ["羽绒服", "电饭煲", "奶粉", "运动鞋", "耳机", "洗发水", "台灯", "行李箱", "手机壳", "面膜"],
        "day": ["周一", "周三", "周六", "明天", "后天", "下周二", "这个月十五号"],
        "road": ["中山路", "解放大道", "科技园", "和平街", "文化路"],
        "kid": ["乐乐", "小宇", "浩浩", "婷婷", "子轩"],
    },
    "en": {
        "bank": ["North Bank", "City Bank", "First Union", "River Trust", "Metro Savings"],
        "city": ["London", "Leeds", "Boston", "Dallas", "Sydney", "Toronto", "Dublin", "Chicago"],
        "platform": ["ShopNow", "BuyWell", "EasyCart", "Marketo"],
        "app": ["ChatUp", "PayLink", "StreamBox", "GameHub"],
        "company": ["Harper", "Summit", "Bluestone", "Kingsway", "Orion"],
        "courier": ["FastPost", "QuickShip", "BlueVan", "Parcel Line"],
        "shop": ["HomeMart", "Green Store", "Sunny Shop", "Corner Market"],
        "goods": ["jacket", "kettle", "headset", "lamp", "backpack", "blender", "watch", "chair"],
        "day": ["Monday", "Wednesday", "Friday", "Saturday"],
        "road": ["High Street", "Park Road", "Mill Lane"],
        "kid": ["Lily", "Jack", "Mia", "Ben", "Sam"],
    },
}


def fill_slots(language, rng):
    """One value per slot, the same through the whole dialogue."""
    slots = {name: rng.choice(values) for name, values in SLOT_CHOICES[language].items()}
    slots["n4"] = f"{rng.randrange(10000):04d}"
    slots["n6"] = f"{rng.randrange(1000000):06d}"
    slots["id"] = str(rng.randrange(1000, 99999))
    if language == "zh":
        slots["surname"], slots["surname2"] = rng.sample(NAMES_ZH, 2)
        slots["name"] = slots["surname"] + rng.choice(GIVEN_ZH)
        slots["time"] = f"{rng.choice(['上午', '下午', '晚上'])}{rng.choice('一二三五六七八九十')}点{rng.choice(['', '半'])}"
        slots["amount"] = f"{rng.choice([500, 800, 980, 1200, 1980, 2000, 3000, 3600, 4800, 5000, 6800, 9800])}元"
        slots["flight"] = f"{rng.choice(['MU', 'CZ', 'HU'])}{rng.randrange(1000, 9999)}"
        slots["small"] = f"{rng.choice([9, 15, 20, 30, 50, 68, 88, 99, 100, 120, 200])}元"
        slots["big"] = f"{rng.choice([2, 3, 5, 6, 8, 10, 12, 15, 20, 30])}万"
    else:
        slots["surname"] = rng.choice(NAMES_EN)
        slots["agent"], slots["name"] = rng.sample(GIVEN_EN, 2)
        slots["time"] = f"{rng.randrange(1, 12)} {rng.choice(['am', 'pm'])}"
        slots["amount"] = f"${rng.choice([300, 450, 500, 800, 950, 1200, 1500, 2000, 2400])}"
        slots["small"] = f"${rng.choice([5, 8, 10, 15, 20, 25, 40])}"
        slots["big"] = f"${rng.choice([5000, 6500, 8000, 12000, 20000, 30000])}"
    return slots


def expand(phrase, slots, rng):
    """Chooses every {a|b}, innermost first, then fills the [slots]."""
    while "{" in phrase:
        phrase = re.sub(r"\{([^{}]*)\}", lambda match: rng.choice(match.group(1).split("|")), phrase)
    return re.sub(r"\[(\w+)\]", lambda match: slots[match.group(1)], phrase)


class Phrase(typing.NamedTuple):
    """A line of a scenario file; without roles it fits every caller."""

    id: str
    roles: frozenset
    text: str


class Topic:
    """The phrases of one scenario file: pools[pool][split] is a list of Phrase."""

    def __init__(self, path):
        self.language, self.name = path.parent.name, path.stem
        self.channels, self.pools, self.reasons = [], {}, {}
        pool = None
        for line in path.read_text(encoding="utf-8").splitlines():
            mark, _, rest = line.partition(" ")
            if mark == "channel":
                self.channels = ["call", "chat"] if rest == "both" else [rest]
            elif pool == "why" and mark in "+-":
                self.reasons[mark == "+"] = rest
            elif mark in SPLIT_OF_MARK:
                phrases = self.pools[pool].setdefault(SPLIT_OF_MARK[mark], [])
                roles, text = re.fullmatch(r"(?:\(([a-z ]+)\) )?(.*)", rest).groups()
                phrase_id = f"{self.language}/{self.name}/{pool}/{mark}{len(phrases)}"
                phrases.append(Phrase(phrase_id, frozenset((roles or "").split()), text))
            else:
                pool = line
                if pool != "why":
                    self.pools[pool] = {}


class Dialogue:
    """Collects turns and the ids of the phrases they were made of."""

    def __init__(self, split, language, rng):
        self.split, self.rng = split, rng
        self.slots = fill_slots(language, rng)
        self.joint = "" if language == "zh" else " "
        self.turns, self.phrase_ids, self.roles = [], [], frozenset()

    def say(self, speaker, pool):
        """Adds a phrase, unused if there is one, that fits the caller's role; who goes on talking extends the turn."""
        phrases = pool[self.split]
        if self.roles:
            phrases = [phrase for phrase in phrases if not phrase.roles or phrase.roles & self.roles] or phrases
        phrase = self.rng.choice([phrase for phrase in phrases if phrase.id not in self.phrase_ids] or phrases)
        self.roles = (self.roles & phrase.roles) or phrase.roles or self.roles
        text = expand(phrase.text, self.slots, self.rng)
        self.phrase_ids.append(phrase.id)
        if self.turns and self.turns[-1][0] == speaker:
            self.turns[-1] = (speaker, self.turns[-1][1] + self.joint + text)
        else:
            self.turns.append((speaker, text))


def make_dialogue(split, topic, replies, is_fraud, rng):
    """One dialogue; the chances of each move do not depend on the label."""
    dialogue = Dialogue(split, topic.language, rng)
    ask, follow = ("fraud", "press") if is_fraud else ("honest", "ease")
    chance = lambda share: rng.random() < share
    caller = lambda pool: dialogue.say("caller", topic.pools[pool])
    user = lambda pool: dialogue.say("user", replies.pools[pool])

    caller("open")
    if chance(0.55):
        user("hello")
    caller("story")
    if chance(0.8):
        user("ask")
    if chance(0.3):
        caller("story")
        user("ask")
    if chance(0.3):
        dialogue.say("caller", replies.pools["assure"])
        if chance(0.5):
            user("ask")
    caller(ask)
    user("react")
    if chance(0.55):
        caller(follow)
        if chance(0.8):
            user("react")
    if chance(0.3):
        caller(ask)
        user("react")
    if chance(0.35):
        caller(follow)
    if chance(0.3) and dialogue.turns[-1][0] == "caller":
        user("bye")
    if len(dialogue.turns) < 3:
        caller(follow)
    return dialogue


def make_record(split, index, topics, replies, rng):
    """A JSONL line, and the ids of the phrases in it."""
    language = "zh" if rng.random() < SHARE_OF_CHINESE else "en"
    is_fraud = rng.random() < 0.5
    topic = rng.choice([topic for topic in topics[language] if is_fraud in topic.reasons])
    dialogue = make_dialogue(split, topic, replies[language], is_fraud, rng)
    names = dict(zip(("caller", "user"), SPEAKERS[language][rng.choice(topic.channels)]))
    lines = [f"{names[speaker]}: {text}" for speaker, text in dialogue.turns[:MAX_TURNS]]
    answer = json.dumps({"is_fraud": is_fraud, "reason": topic.reasons[is_fraud]}, ensure_ascii=False)
    record = {
        "id": f"{split}-{index:05d}",
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": INSTRUCTION[language] + "\n\n" + "\n".join(lines)},
            {"role": "assistant", "content": answer},
        ],
        "is_fraud": is_fraud,
    }
    return record, dialogue.phrase_ids


def load_scenarios():
    """Topics and shared replies by language, read in a fixed order."""
    topics, replies = {"zh": [], "en": []}, {}
    for path in sorted((HERE / "scenarios").glob("*/*.txt")):
        topic = Topic(path)
        if topic.name == "replies":
            replies[topic.language] = topic
        else:
            topics[topic.language].append(topic)
    return topics, replies


def make_split(split, count, seed, topics, replies):
    """`count` records with different texts."""
    rng = random.Random(f"{seed}/{split}")
    records, texts, phrase_ids = [], set(), set()
    while len(records) < count:
        record, ids = make_record(split, len(records), topics, replies, rng)
        text = record["messages"][1]["content"]
        if text not in texts:
            texts.add(text)
            phrase_ids.update(ids)
            records.append(record)
    return records, texts, phrase_ids


def check_disjoint(made, topics, replies):
    """No two splits may share a phrase id, the words of a phrase, or a dialogue."""
    words_of = {}
    for topic in [*topics["zh"], *topics["en"], *replies.values()]:
        for pool in topic.pools.values():
            for phrases in pool.values():
                words_of.update((phrase.id, re.sub(r"\W", "", phrase.text)) for phrase in phrases)
    splits = list(made)
    for i, first in enumerate(splits):
        for second in splits[i + 1:]:
            _, texts_a, ids_a = made[first]
            _, texts_b, ids_b = made[second]
            assert ids_a.isdisjoint(ids_b), f"{first} and {second} share a template"
            assert texts_a.isdisjoint(texts_b), f"{first} and {second} share a dialogue"
            shared = {words_of[k] for k in ids_a} & {words_of[k] for k in ids_b}
            assert not shared, f"{first} and {second} share the phrases {sorted(shared)}"


def write_jsonl(path, records):
    """Writes the records and says what they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(data)
    fraud = sum(record["is_fraud"] for record in records)
    print(f"{path}: {len(records)} dialogues, {fraud} fraud, {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train-count", type=int, default=60000)
    parser.add_argument("--calibration-count", type=int, default=256)
    parser.add_argument("--test-count", type=int, default=1200)
    parser.add_argument("--train-out", type=pathlib.Path, default=HERE / "data" / "train.jsonl")
    parser.add_argument("--data-out", type=pathlib.Path, default=HERE / "data")
    options = parser.parse_args()

    topics, replies = load_scenarios()
    counts = {"train": options.train_count, "calibration": options.calibration_count, "test": options.test_count}
    made = {split: make_split(split, count, options.seed, topics, replies) for split, count in counts.items()}
    check_disjoint(made, topics, replies)
    write_jsonl(options.train_out, made["train"][0])
    for split in ("calibration", "test"):
        write_jsonl(options.data_out / f"{split}.jsonl", made[split][0])


if __name__ == "__main__":
    main()

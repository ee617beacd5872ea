"""The vocabulary of findings: what ends a clause, what negates one, which words say nothing or
exclude each other."""

from __future__ import annotations

import re


def listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


# captured: a question claims nothing
SENTENCE_END = re.compile(r"((?<!\d)\.|\.(?!\d)|[;!?\n•—–]|\s[-*]\s)")
CLAUSE_END = re.compile(
    r"[,:]|\b(?:but|however|although|though|except(?: for)?|apart from|aside from|whereas|while|yet|nevertheless)\b"
    r"|\b(?:and|or)\b(?=\s+(?:a|an|the|there|it|its|also|another)\b)|\b(?:and|with)\b(?=\s+no\b)"
    r"|(?=\b(?:without|rather than|instead of|as opposed to)\b)"
)
OR = re.compile(r"\b(?:or|nor)\b")
PSEUDO_NEGATION = re.compile(
    r"\bnot (?:only|just|necessarily|to mention)\b|\bno doubt\b|\bwithout (?:any )?doubt\b"
    r"|\b(?:cannot|can not|could not|can't|couldn't|not)(?: be)?(?: \w+ly)? (?:excluded|ruled out)\b"
    r"|\bno (?:significant |interval )?(?:change|increase|decrease)\b"
    r"|\b(?:not|never|n't|no)(?: be| been)? (?:absent|without|absence|lack|lacking|negative|unlikely|free)\b(?: of)?"
)
NEGATION = re.compile(
    r"\b(?:no|not|without|absent|absence|den(?:y|ies|ied)|negative|neither|nor|never|none|non(?!-)|lacks?|lacking|cannot"
    r"|(?:free|clear) of|rule[sd]? out|exclude[sd]?|excluding|rather than|instead of|as opposed to|unlikely"
    r"|resolved|fails? to)\b|n['’]t\b"
)
VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|shows?|there|seen|present|noted|appears?|seems?|lies?|i|we)\b"
)
WORD = re.compile(r"\d+(?:[.,]\d+)?|non-?[^\W\d_]+|[^\W\d_]+")

STOP_WORDS = listed(
    """
    a an the this that these those it its they them their he she his her i we my our you your and or nor of in on at
    to from by for with within without into onto over under between around beside near along across through about
    above below behind as is are was were be been being has have had having do does did can could may might will
    would should shall must there here which who what where when how why then than so also both either neither too
    very quite rather some any each such same only just still again if because since due therefore thus hence no not
    non never none cannot t s d ll re ve m o but however although though except while whereas yet nevertheless apart
    aside instead opposed lack lacks lacking negative absent absence denies denied deny free ruled rule rules out
    excluded excludes exclude excluding unlikely fails fail resolved up like doesn didn don isn aren wasn weren hasn
    haven couldn
    """
)
# What every sentence about a picture may hold, and which says nothing about this one.
EMPTY_WORDS = listed(
    """
    image picture scan photo photograph radiograph film xray study examination exam view figure slide shown show see
    seen saw look looks looking appear appears appeared seem seems noted note observe observed visible visualized
    identified demonstrate demonstrates demonstrated reveal reveals revealed display displays displayed depict
    depicts present evidence sign finding findings impression conclusion conclude suggest suggests suggesting
    suggestive indicate indicates indicating consistent compatible likely probably possibly maybe perhaps clearly
    patient let me think first next finally answer question option describe describes described lie lies located
    body part yes ok okay hmm
    """
)
OPPOSITES: tuple[tuple[str, str], ...] = (
    ("left", "right"), ("upper", "lower"), ("top", "bottom"), ("normal", "abnormal"), ("normal", "enlarged"),
    ("increased", "decreased"), ("increase", "decrease"), ("elevated", "reduced"), ("benign", "malignant"),
    ("bilateral", "unilateral"), ("bilateral", "left"), ("bilateral", "right"), ("anterior", "posterior"),
    ("medial", "lateral"), ("enlarged", "small"), ("large", "small"), ("acute", "chronic"), ("proximal", "distal"),
    ("superior", "inferior"), ("ventral", "dorsal"), ("cranial", "caudal"), ("superficial", "deep"),
    ("central", "peripheral"), ("internal", "external"), ("inner", "outer"), ("single", "multiple"),
    ("focal", "diffuse"), ("solid", "cystic"), ("regular", "irregular"), ("symmetric", "asymmetric"),
    ("symmetrical", "asymmetrical"), ("dilated", "narrowed"), ("dilated", "collapsed"), ("complete", "incomplete"),
    ("stable", "unstable"), ("displaced", "undisplaced"), ("displaced", "nondisplaced"), ("open", "closed"),
    ("thick", "thin"), ("bright", "dark"), ("male", "female"), ("systolic", "diastolic"), ("primary", "secondary"),
    ("positive", "negative"), ("well", "poorly"), ("mild", "severe"), ("higher", "lower"), ("high", "low"),
    ("hot", "cold"), ("supine", "erect"), ("axial", "sagittal"), ("axial", "coronal"), ("coronal", "sagittal"),
)  # fmt: skip

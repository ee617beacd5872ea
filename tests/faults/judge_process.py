"""The rules as a judge in a process of its own, which can be killed: python -m
tests.faults.judge_process PORT"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Response

from rarl.config import JudgeConfig
from rarl.judge.candidate import ScoreRequest, reply_of
from rarl.judge.client import open_judge

app = FastAPI()
judge = open_judge(JudgeConfig(), None)


@app.post("/score")
def score(request: ScoreRequest) -> Response:
    return Response(reply_of(judge.score(request.candidates)), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")

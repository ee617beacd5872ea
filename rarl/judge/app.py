"""The judge as a Ray Serve application: `rarl.judge.app:build`.

    rarl serve configs/judge/rules.yaml
    curl localhost:8000/judge/health

`POST /score` takes {"candidates": […]} and answers {"verdicts": […]} in the same order; `score`
does the same for handles. Every candidate gets a verdict, at worst "unreachable".
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Response
from pydantic import Field
from ray import serve

from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.backends import MISCONFIGURED
from rarl.judge.candidate import MAX_BATCH, MAX_CHARACTERS, Candidate, ScoreRequest, reply_of
from rarl.judge.client import open_judge
from rarl.judge.rubric import unreachable
from rarl.keys import validated
from rarl.schema import Verdict

LOG = logging.getLogger("ray.serve")
api = FastAPI(title="RARL judge")


class AppConfig(JudgeConfig):
    """The arguments of `build`: a judge's configuration, and how it is deployed."""

    backend: Literal["rules", "openai"] = "rules"  # the application does not ask another one
    on_unreachable: Literal["continue"] = "continue"  # whether to stop is for the run that asks
    cache_path: str | None = None  # verdicts are kept here; None: nowhere
    num_replicas: Annotated[int, Field(gt=0)] = 1
    num_cpus: Annotated[float, Field(gt=0)] = 0.1  # of each replica: it only waits for the model
    max_ongoing_requests: Annotated[int, Field(gt=0)] = 256  # of each replica; more are queued


def verdict_or_error(result: Verdict | BaseException) -> Verdict:
    """Raises UserError; any other mistake costs one candidate its verdict, and no other of its
    batch."""
    if isinstance(result, UserError):
        raise result
    if isinstance(result, BaseException):
        LOG.error("judging a candidate failed", exc_info=result)
        return unreachable(f"{type(result).__name__}: {result}")
    return result


@serve.deployment(name="JudgeService")
@serve.ingress(api)  # copies the class here and now: what it uses must be defined above
class JudgeService:
    """One judge per replica; its own thread does the asking, so health checks are answered
    meanwhile."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.judge = open_judge(config, Path(config.cache_path) if config.cache_path else None)

    @api.post("/score")
    async def score_over_http(self, request: ScoreRequest) -> Response:
        if len(request.candidates) > MAX_BATCH:
            raise HTTPException(413, f"at most {MAX_BATCH} candidates in one request")
        if any(one.characters() > MAX_CHARACTERS for one in request.candidates):
            raise HTTPException(413, f"at most {MAX_CHARACTERS} characters in one candidate")
        try:
            return Response(await self.verdicts(request.candidates), media_type="application/json")
        except UserError as error:
            raise HTTPException(MISCONFIGURED, str(error)) from None

    @api.get("/health")
    async def health(self) -> dict[str, Any]:
        names = ("scored", "unparsable", "unreachable", "cached")
        counts = {name: getattr(self.judge.counts(), name) for name in names}
        return {"backend": self.config.backend, "model": self.config.model} | counts

    async def score(self, candidates: list[dict[str, Any]]) -> bytes:
        """For handles: returns a ScoreReply as JSON. Raises UserError where the judge's own backend
        is set up wrongly."""
        request = ScoreRequest.model_validate({"candidates": candidates})
        return await self.verdicts(request.candidates)

    async def verdicts(self, candidates: list[Candidate]) -> bytes:
        futures = map(asyncio.wrap_future, self.judge.submit(candidates))
        results = await asyncio.gather(*futures, return_exceptions=True)
        return reply_of([verdict_or_error(result) for result in results])

    def __del__(self) -> None:
        if judge := getattr(self, "judge", None):
            judge.close()


def build(args: dict[str, Any]) -> serve.Application:
    """The application from the keys of `judge` in a run's configuration and those of AppConfig."""
    config = validated(AppConfig, args, (), "judge application")
    # the decorators make a Deployment of it, which their types do not say
    service: Any = JudgeService
    deployment = service.options(
        num_replicas=config.num_replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.num_cpus},
    )
    return deployment.bind(config)

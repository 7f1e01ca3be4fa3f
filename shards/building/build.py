"""A build from plan to result. Killed anywhere, the same command goes on; run again, it adds what is new."""

from collections.abc import Iterator

from tqdm import tqdm

from shards.building.agreement import agree_on, check_encoder, check_settings, load_base
from shards.building.folders import Folders
from shards.building.job import Job
from shards.building.merging import Merger, find_near_duplicates, load_records, read_sources
from shards.building.parts import Part, Record
from shards.building.plan import PLAN_NAME, Outline, Plan, publish
from shards.building.workers import build_parts, choose_workers
from shards.caption_folder.samples import Sample
from shards.embedding_sources import EmbeddingSource
from shards.problems import Problem, first_few, print_problems, summary
from toolkit.data.shard_format import Manifest
from toolkit.data.tar_index import list_tar
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

PROBED = 2000
"""Samples of a plan that an embedding source may look at to learn what it holds."""


def build(job: Job) -> None:
    """Raises UserError; finished parts are kept beside `job.out` for the next try."""
    if job.overwrite and job.share.count > 1:
        raise UserError(f"--overwrite in several processes would undo the others' work; remove {job.out} by hand")
    kept = ""
    try:
        folders = Folders(job.out)
        try:
            _build(job, folders)
        except (FileNotFoundError, UserError):  # of the folder that another process has taken away
            if not folders.was_removed:
                raise
            print(f"another process has put {job.out} together")
        finally:
            folders.leave()
            kept = f"; finished parts stay in {folders.building}" if folders.holds_plan else ""
    except OSError as error:
        raise UserError(f"cannot write {job.out}: {error.strerror or error}{kept}") from None


def _build(job: Job, folders: Folders) -> None:
    _base(job, folders)  # refuses what is no base at all, before anything is looked at
    if job.overwrite:
        folders.start_anew()
    folders.join()
    if not _forget_outdated(job, folders):
        print(f"another process is just putting {job.out} together")
        return
    base, going_on = _base(job, folders), folders.holds_plan
    if not going_on and not _plan(job, folders, base):
        return
    plan = Plan(folders.building / PLAN_NAME)
    unfinished = f"the unfinished build in {folders.building} was begun"
    check_settings(unfinished, plan.outline.settings, job.built_with)
    if going_on and job.share.count == 1:
        print(f"going on with the build that was begun in {folders.building}")
    job.stop_if_strict(plan.outline.problems)
    source = job.embed(_first(plan))
    identity = agree_on(folders.building, source.identity)
    check_encoder(unfinished, identity, source.identity)
    if base:
        check_encoder(f"{job.out} was built", base.encoder, source.identity)
    _build_parts(job, folders, plan, source)
    missing = sum(not _is_done(job, folders, number) for number in plan.parts)
    if folders.was_removed:
        print(f"another process has put {job.out} together")
    elif missing:
        others = f"{missing:,} of {len(plan.parts):,} are with other processes"
        print(f"this process's parts of {job.out} are done; {others}")
    else:
        _put_together(job, folders, plan, base.encoder if base else identity)


def _base(job: Job, folders: Folders) -> Manifest | None:
    """Of the folder that is added to. Raises UserError if that cannot be."""
    return load_base(folders.out, job.settings) if folders.holds_shards and not job.overwrite else None


def _forget_outdated(job: Job, folders: Folders) -> bool:
    """A kill may leave a plan that has been carried out. False if another process is just tidying up after it."""
    if job.overwrite or not folders.holds_plan or not _is_outdated(Plan(folders.building / PLAN_NAME), folders):
        return True
    with folders.alone() as chosen:
        if chosen:
            folders.discard()
    return not folders.holds_plan


def _is_outdated(plan: Plan, folders: Folders) -> bool:
    """Whether a plan was made for another state of OUT: it has been carried out already, or OUT was exchanged."""
    return plan.outline.first_part != _numbers_taken(folders)[0]


def _plan(job: Job, folders: Folders, base: Manifest | None) -> bool:
    """Write down what is to be done; False if that is nothing."""
    taken = _numbers_taken(folders) if base else (0, 0)  # first: what another adds from now on outdates this plan
    samples, problems = job.scan()
    if base:
        earlier = {source.key: source.captions for source in read_sources(folders.out)}
        problems = problems + [
            Problem(s.image, "changed captions: built with others; --overwrite builds all anew")
            for s in samples if earlier.get(s.key, s.captions) != s.captions
        ]  # fmt: skip
        samples = [sample for sample in samples if sample.key not in earlier]
    job.stop_if_strict(problems)
    if base and not samples:
        print_problems(problems)
        print(f"{job.out} holds all {base.samples:,} samples already; nothing to add; {summary(problems)}")
        return False
    if base:
        what = "samples" if job.rules.crops == 1 else f"images, up to {job.rules.crops} samples each,"
        print(f"adding {len(samples):,} {what} to the {base.samples:,} of {job.out}")
    if not samples:
        raise UserError(f"no usable sample in {job.images}; {summary(problems)}{first_few(problems)}")
    folders.start()
    outline = Outline(job.built_with, *taken, job.per_part, len(samples), problems, job.rules.crops)
    publish(folders.building, outline, samples)
    return True


def _numbers_taken(folders: Folders) -> tuple[int, int]:
    """(shard numbers, sample numbers) that new ones must lie above; one tells nothing of the other after skips."""
    if not folders.holds_shards:
        return 0, 0
    last = Manifest.load(folders.out).shards[-1].name
    keys, _ = list_tar(folders.out / last, 0)
    return int(last.removeprefix("shard-").removesuffix(".tar")) + 1, int(keys[-1]) + 1


def _build_parts(job: Job, folders: Folders, plan: Plan, source: EmbeddingSource) -> None:
    mine = job.share.mine(plan.parts)
    missing = [number for number in mine if not _is_done(job, folders, number)]
    total, to_do = (sum(map(plan.size, numbers)) for numbers in (mine, missing))
    if not missing:
        return

    def parts() -> Iterator[Part]:
        for number in missing:
            samples = plan.samples(number)
            yield Part(number, plan.first_number(number), samples, source.of(samples))

    def judge(number: int) -> None:
        for record in load_records(folders.building, range(number, number + 1)) if job.strict else ():
            job.stop_if_strict(record.skipped)

    workers = choose_workers(job.workers, to_do, len(missing))
    with tqdm(total=total, initial=total - to_do, unit=" images", disable=None) as bar:
        build_parts(parts(), folders.building, job.images, job.rules, workers, bar, judge)


def _is_done(job: Job, folders: Folders, number: int) -> bool:
    """With --strict a part that left something out is not: mended, it is built again."""
    record = Record.load(folders.building, number)
    return record is not None and not (job.strict and record.skipped)


def _put_together(job: Job, folders: Folders, plan: Plan, identity: EncoderIdentity) -> None:
    with folders.alone() as chosen:
        if not chosen:
            print(f"this process's parts of {job.out} are done; another process puts them together")
        elif not job.overwrite and _is_outdated(plan, folders):
            folders.discard()
            print(f"another process has put {job.out} together")
        else:
            _merge(job, folders, plan, identity)


def _merge(job: Job, folders: Folders, plan: Plan, identity: EncoderIdentity) -> None:
    base = folders.out if plan.outline.first_part else None
    doubles: dict[int, str] = {}
    if job.near_bits is not None:
        doubles, complete = find_near_duplicates(folders.building, plan.parts, base, job.near_bits)
        if not complete:
            print("too many images look alike to compare them all; some near-duplicates may be left")
    with folders.new() as new, Merger(new, plan.outline.problems) as merger:
        if base:
            merger.add_base(base)
        for number, record in zip(plan.parts, load_records(folders.building, plan.parts), strict=True):
            merger.add_part(folders.building, number, record, doubles)
        left_out = summary(merger.problems)
        if merger.added:
            manifest = merger.finish(identity, job.built_with)
        elif not base:
            raise UserError(f"no sample is usable; {left_out}{first_few(merger.problems)}")
    print_problems(merger.problems)
    if not merger.added:
        print(f"no new sample is usable, {job.out} stays as it is; {left_out}")
        return
    print(
        f"wrote {manifest.samples:,} samples with {manifest.distinct_captions:,} distinct captions in "
        f"{len(manifest.shards)} shards to {job.out} (encoder {manifest.encoder.name}); {left_out}"
    )


def _first(plan: Plan) -> list[Sample]:
    samples: list[Sample] = []
    for number in plan.parts:
        samples += plan.samples(number)
        if len(samples) >= PROBED:
            break
    return samples

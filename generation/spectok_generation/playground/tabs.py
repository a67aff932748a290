"""The tabs of the playground: what is on them, and which function fills them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from spectok.errors import InputError, SpectokError
from spectok_generation.playground import drawing, views
from spectok_generation.playground.desk import Desk
from spectok_generation.playground.pictures import LOUDER, painted, show
from spectok_generation.playground.subjects import Subject, Subjects

CHOOSING = 140
"""Height in pixels of a row of pictures to choose from."""
Fill = Callable[[Desk, Subject], Sequence[Any]]


@dataclass(frozen=True)
class Tab:
    """A tab that follows the picture and the model that are chosen.

    Args:
        outputs: Its components that change with them.
        fill: Returns their values, one each.
    """

    outputs: list[Any]
    fill: Fill


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show what spectok refuses as a message on the page instead of a failure."""

    @functools.wraps(function)
    def answered(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SpectokError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answered


def on_subject(subjects: Subjects, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that takes a desk and more, and calls a function with its model too."""

    def call(desk: Desk | None, *more: Any) -> Any:
        if desk is None:
            raise InputError("there are no images yet; choose a model first")
        return function(desk, subjects[desk.name], *more)

    return in_words(call)


def picture(label: str, name: str) -> gr.Image:
    """Return a place for a picture, kept exact."""
    options: dict[str, Any] = {"format": "png", "type": "pil", "interactive": False}
    return gr.Image(label=label, elem_id=name, height=300, buttons=["download"], **options)


def gallery(label: str, name: str, columns: int, *, choosing: bool = False) -> gr.Gallery:
    """Return a place for several pictures, kept exact.

    Args:
        label: Its title.
        name: Names it in the page.
        columns: Pictures in a row.
        choosing: Whether a click chooses a picture, instead of showing it large.
    """
    options: dict[str, Any] = {"format": "png", "interactive": False, "object_fit": "contain"}
    options |= {"fit_columns": False, "buttons": []}  # few pictures are not drawn larger than many
    options |= {"allow_preview": not choosing, "height": CHOOSING if choosing else None}
    return gr.Gallery(label=label, elem_id=name, columns=columns, **options)


def reason(text: str) -> dict[str, Any]:
    """Return the change of a line that says why something cannot be done; hidden if it can."""
    return gr.update(value=text, visible=bool(text))


def reconstruction_tab() -> Tab:
    """Add the picture, its reconstruction, and their difference."""
    with gr.Tab("Reconstruction", elem_id="tab-reconstruction"):
        words = gr.Markdown(elem_id="quality")
        with gr.Row():
            shown = [
                picture("Original", "original"),
                picture("From its tokens", "reconstruction"),
                picture(f"Difference × {LOUDER}", "difference"),
            ]

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        return views.reconstruct(subject.tokenizer, desk.image)

    return Tab([*shown, words], fill)


def tokens_tab() -> Tab:
    """Add the tokens, as numbers in colours."""
    with gr.Tab("Tokens", elem_id="tab-tokens"):
        gr.Markdown("Equal numbers of a level have one colour.")
        tables = gr.HTML(elem_id="tables")

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        return [views.token_tables(subject.tokenizer.token_spec, desk.tokens(subject))]

    return Tab([tables], fill)


def progressive_tab(subjects: Subjects, desk: gr.State) -> Tab:
    """Add a slider over the first tokens, and a row of longer and longer starts."""
    with gr.Tab("First tokens", elem_id="tab-progressive"):
        why = gr.Markdown(elem_id="no-prefix")
        with gr.Row():
            with gr.Column():
                slider = gr.Slider(1, 2, 1, step=1, label="Step", elem_id="step")
                words = gr.Markdown(elem_id="prefix-words")
            shown = picture("From the first tokens alone", "prefix")
        strip = gallery("More and more of them", "strip", 8)

    def decoded(desk: Desk, subject: Subject, step: float) -> Sequence[Any]:
        lengths = views.prefix_lengths(subject.tokenizer.token_spec)
        length = lengths[min(max(int(step), 1), len(lengths)) - 1]
        image = views.decode(subject.tokenizer, desk.tokens(subject), length)
        return image, f"The first {length} of {lengths[-1]} tokens."

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        text = views.why_no_prefix(subject.tokenizer.token_spec)
        steps = len(views.prefix_lengths(subject.tokenizer.token_spec))
        move = gr.update(maximum=max(steps, 2), value=steps, visible=not text)
        pictures = views.prefix_strip(subject.tokenizer, desk.tokens(subject))
        return reason(text), move, *decoded(desk, subject, steps), pictures

    slider.input(
        on_subject(subjects, decoded),
        [desk, slider],
        [shown, words],
        trigger_mode="always_last",
        show_progress="hidden",
    )
    return Tab([why, slider, shown, words, strip], fill)


def influence_tab(subjects: Subjects, desk: gr.State) -> Tab:
    """Add a picture per token: the pixels that it is about."""
    with gr.Tab("Influence", elem_id="tab-influence"):
        gr.Markdown("One token takes other values, the rest stays: which pixels change?")
        with gr.Row():
            level = gr.Dropdown(label="Level", elem_id="influence-level", type="index")
            go = gr.Button("Measure", variant="primary", elem_id="go-influence")
        words = gr.Markdown(elem_id="influence-words")
        shown = gallery("Bright: changes most", "influences", 8)

    def measure(desk: Desk, subject: Subject, level: int | None) -> Sequence[Any]:
        return views.influences(subject.tokenizer, desk.tokens(subject), level or 0)

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        count = subject.tokenizer.token_spec.num_levels
        levels = [f"level {number}" for number in range(count)]
        change = gr.update(choices=levels, value=levels[0], visible=count > 1)
        return change, None, ""

    go.click(on_subject(subjects, measure), [desk, level], [shown, words])
    return Tab([level, shown, words], fill)


def swap_tab(subjects: Subjects, desk: gr.State) -> Tab:
    """Add a second picture, some of whose tokens take the place of the first one's."""
    with gr.Tab("Swap", elem_id="tab-swap"):
        others = gallery("Take tokens from", "others", 12, choosing=True)
        with gr.Row():
            choice = gr.Dropdown(label="Which tokens", elem_id="swap-choice")
            share = gr.Slider(0, 1, 0.5, step=0.01, label="How large a part", elem_id="share")
        with gr.Row():
            shown = [
                picture("First", "swap-first"),
                picture("Second", "swap-second"),
                picture("Mixed", "mixed"),
            ]

    def mixed(desk: Desk, subject: Subject, choice: str, share: float) -> Sequence[Any]:
        first, second = desk.tokens(subject), desk.second_tokens(subject)
        places = views.places_to_swap(subject.tokenizer.token_spec, choice, share)
        decode = functools.partial(views.decode, subject.tokenizer)
        mix = views.swap(subject.tokenizer, first, second, places)
        return decode(first), decode(second), mix

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        choices = views.swap_choices(subject.tokenizer.token_spec)
        chosen = gr.update(choices=choices, value=choices[0])
        return (
            [show(image) for image in desk.images],
            chosen,
            *mixed(desk, subject, choices[0], 0.5),
        )

    def pick(desk: Desk, event: gr.SelectData) -> Desk:
        return desk.choose_second(event.index)

    mix = on_subject(subjects, mixed)
    inputs = [desk, choice, share]
    others.select(in_words(pick), desk, desk).success(mix, inputs, shown)
    choice.input(mix, inputs, shown)
    share.input(mix, inputs, shown, trigger_mode="always_last", show_progress="hidden")
    return Tab([others, choice, *shown], fill)


def codes_tab(subjects: Subjects, desk: gr.State) -> Tab:
    """Add a picture per code that one token can be."""
    with gr.Tab("Codebook", elem_id="tab-codebook"):
        facts = gr.Markdown(elem_id="codebooks")
        with gr.Row():
            place = gr.Slider(0, 1, 0, step=1, label="Token", elem_id="place")
            start = gr.Number(0, minimum=0, precision=0, label="From code", elem_id="code")
            go = gr.Button("Show", variant="primary", elem_id="go-codebook")
        shown = gallery("The picture with each code at this token", "codes", 8)

    def browse(desk: Desk, subject: Subject, place: float, start: float | None) -> Any:
        tokens = desk.tokens(subject)
        return views.draw_codes(subject.tokenizer, tokens, int(place), int(start or 0))

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        last = subject.tokenizer.token_spec.num_tokens - 1
        places = gr.update(maximum=max(1, last), value=last // 2)
        return views.describe_codebooks(subject.tokenizer), places, 0, None

    go.click(on_subject(subjects, browse), [desk, place, start], shown)
    return Tab([facts, place, start, shown], fill)


@dataclass(frozen=True)
class Wishes:
    """The settings of drawing, as components."""

    label: gr.Dropdown
    prompt: gr.Textbox
    temperature: gr.Slider
    guidance: gr.Slider
    seed: gr.Number
    count: gr.Slider

    @property
    def inputs(self) -> list[Any]:
        """In the order that :func:`as_options` reads."""
        return [self.label, self.prompt, self.temperature, self.guidance, self.seed, self.count]


def wishes(name: str, count: int) -> Wishes:
    """Add the settings of drawing.

    Args:
        name: Begins the names of the components.
        count: Images drawn at first.
    """
    with gr.Row():
        label = gr.Dropdown(label="Class", elem_id=f"{name}-class")
        prompt = gr.Textbox(label="Text", elem_id=f"{name}-prompt", max_length=500)
        seed = gr.Number(0, minimum=0, precision=0, label="Seed", elem_id=f"{name}-seed")
    with gr.Row():
        options: dict[str, Any] = {"step": 0.05}
        temperature = gr.Slider(0.1, 2, 1, label="Temperature", **options)
        guidance = gr.Slider(0, 10, 1, label="Guidance", **options)
        images = gr.Slider(1, drawing.MAX_IMAGES, count, step=1, label="Images")
    return Wishes(label, prompt, temperature, guidance, seed, images)


def as_options(
    label: str | None, prompt: str, temperature: float, guidance: float, seed: float, count: float
) -> tuple[int, dict[str, Any]]:
    """Return how many images to draw, and the options of drawing them."""
    options: dict[str, Any] = {"label": label, "prompt": prompt, "seed": int(seed or 0)}
    # a guidance of 1 is none, and priors that cannot be guided take no other
    return int(count), options | {"temperature": temperature, "guidance": guidance}


def fit_wishes(subject: Subject) -> tuple[Any, Any, Any]:
    """Return the changes of class, text and temperature for a model; what it lacks is hidden."""
    classes = drawing.class_choices(subject)
    first = classes[0] if classes else None
    tokens = not drawing.why_no_redrawing(subject)  # latents have no temperature
    return (
        gr.update(choices=classes, value=first, visible=bool(classes)),
        gr.update(visible=drawing.reads_text(subject)),
        gr.update(visible=tokens),
    )


def samples_tab(subjects: Subjects, desk: gr.State) -> Tab:
    """Add new images, by class or by text."""
    with gr.Tab("Samples", elem_id="tab-samples"):
        why = gr.Markdown(elem_id="no-samples")
        with gr.Column() as body:
            given = wishes("samples", 8)
            go = gr.Button("Draw", variant="primary", elem_id="go-samples")
            shown = gallery("New images", "samples", 8)

    def draw(desk: Desk, subject: Subject, *values: Any) -> Any:
        count, options = as_options(*values)
        return drawing.draw_samples(subject, count, **options)

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        text = drawing.why_no_samples(subject)
        return reason(text), gr.update(visible=not text), *fit_wishes(subject), None

    go.click(on_subject(subjects, draw), [desk, *given.inputs], shown)
    return Tab([why, body, given.label, given.prompt, given.temperature, shown], fill)


def edit_tab(subjects: Subjects, desk: gr.State) -> Tab:
    """Add a picture to paint on, and what a prior draws in the place of the paint."""
    with gr.Tab("Edit", elem_id="tab-edit"):
        why = gr.Markdown(elem_id="no-edit")
        with gr.Column() as body:
            with gr.Row():
                editor = gr.ImageEditor(
                    label="Paint over what is to be drawn anew",
                    elem_id="editor",
                    type="numpy",
                    image_mode="RGBA",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=40, colors=["#ff3366"], color_mode="fixed"),
                    height=420,
                )
                with gr.Column():
                    given = wishes("edit", 4)
                    go = gr.Button("Draw anew", variant="primary", elem_id="go-edit")
                    words = gr.Markdown(elem_id="edit-words")
            shown = gallery("Variants", "variants", 8)

    def draw(desk: Desk, subject: Subject, editing: Any, *values: Any) -> Sequence[Any]:
        height, width = desk.images.shape[-2:]
        region = painted(editing, (height, width))
        count, options = as_options(*values)
        return drawing.redraw(subject, desk.tokens(subject), region, count, **options)

    def fill(desk: Desk, subject: Subject) -> Sequence[Any]:
        text = drawing.why_no_redrawing(subject)
        image = views.decode(subject.tokenizer, desk.tokens(subject)).convert("RGBA")
        blank = {"background": image, "layers": [], "composite": image}
        change = gr.update(visible=not text)
        return reason(text), change, *fit_wishes(subject), blank, None, ""

    go.click(on_subject(subjects, draw), [desk, editor, *given.inputs], [shown, words])
    settings = [given.label, given.prompt, given.temperature]
    return Tab([why, body, *settings, editor, shown, words], fill)

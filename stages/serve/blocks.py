"""The page's controls, in Gradio: fields, sliders, and places for what ``page.js`` shows.

No event of theirs has a function of Python: Gradio would write an upload to disk and give it out by its path. All work
is asked for by ``page.js`` at the routes of :mod:`stages.serve.app`.
"""

from functools import partial
from html import escape

import gradio as gr
from fastapi import FastAPI

from stages.serve.config import MAX_RERANK, MAX_TEXT, MAX_TOP, MAX_UPLOAD, TOP

#: Fonts that are on the machine; Gradio's own themes fetch theirs.
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "Consolas", "Menlo", "monospace")

HEAD = '<link rel="stylesheet" href="page.css"><script src="page.js" defer></script>'

DROP = """
<label id="cb-drop" for="cb-file" data-limit="{limit}" data-top="{top}">
  <input id="cb-file" type="file" accept="image/*">
  <span><strong>Choose a photo</strong>, drop it here, or paste it</span>
</label>
"""

MAP = """
<section id="cb-map" aria-label="Map of the database">
  <div class="cb-bar-of-map"><h2>Map</h2>
  <button type="button" data-zoom="1.5" aria-label="Zoom in">+</button>
  <button type="button" data-zoom="0.667" aria-label="Zoom out">&minus;</button>
  <button type="button" data-zoom="0">All</button></div>
  <div class="cb-canvas"><canvas tabindex="0" role="application"
    aria-label="Map: arrow keys go to a neighbour, Enter searches with it, + and - zoom"></canvas>
  <div class="cb-tip" hidden></div></div>
  <p class="cb-note"></p>
  <ul class="cb-legend" aria-label="Components"></ul>
</section>
"""

RESULTS = '<section id="cb-results" aria-label="Results" tabindex="-1"></section>'


def blocks(title: str) -> gr.Blocks:
    """The page of an index, that is called `title`."""
    place = partial(gr.HTML, js_on_load=None, apply_default_css=False)
    with gr.Blocks(title="conceptbits", analytics_enabled=False) as page:
        place(f"<header id='cb-head'><h1>conceptbits</h1><p>{escape(title)}</p></header>")
        with gr.Row(elem_id="cb-main"):
            with gr.Column(elem_id="cb-left"):
                with gr.Column(elem_id="cb-ask"):
                    place(DROP.format(limit=MAX_UPLOAD, top=TOP))
                    text = gr.Textbox(
                        label="Text", placeholder="a dog and a boat", elem_id="cb-text", submit_btn="Search",
                        max_length=MAX_TEXT,
                    )  # fmt: skip
                    top = gr.Slider(1, MAX_TOP, TOP, step=1, label="Images", elem_id="cb-top")
                    rerank = gr.Slider(
                        0, MAX_RERANK, 0, step=50, label="Re-rank", elem_id="cb-rerank",
                        info="so many of the nearest codes are ordered by their features; 0: none",
                    )  # fmt: skip
                place(MAP)
            with gr.Column(elem_id="cb-right"):
                place(RESULTS)
        gr.on([text.submit], None, [text], js="text => window.conceptbits.text(text)", queue=False)
        gr.on([top.change, rerank.change], None, [top, rerank], queue=False,
              js="(top, rerank) => window.conceptbits.options(top, rerank)")  # fmt: skip
    return page


def mounted(app: FastAPI, page: gr.Blocks) -> FastAPI:
    """`app` with the page at its root."""
    return gr.mount_gradio_app(
        app, page, "/", theme=gr.themes.Base(font=SANS, font_mono=MONO), head=HEAD, footer_links=[], run_history=False,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, show_error=False,
    )  # fmt: skip

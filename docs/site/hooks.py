"""What MkDocs does beside its own: formulas become MathML, which browsers draw themselves; the gallery is a part."""

import html
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ntk_analysis.paper_checks.report import site
from ntk_analysis.paper_checks.report.formulas import formula

GALLERY = Path(__file__).parents[2] / "figures" / "gallery"
FONT = "STIXTwoMath-Regular.ttf"
PICTURE = re.compile(r"(!\[[^]]*\])\((?:\.\./)+figures/gallery/(\w+\.png)\)")
MATHS = re.compile(
    r'<(?P<tag>div|span) class="arithmatex">\\[\[(](?P<latex>.*?)\\[\])]</(?P=tag)>',
    re.DOTALL,
)
log = logging.getLogger("mkdocs.hooks")  # a warning fails the strict build


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of the claims stand first in their section."""
    section = next(entry["The claims"] for entry in config.nav or () if "The claims" in entry)
    papers = {paper: [{name: f"claims/{name}.md"} for name in names] for paper, names in site.names().items()}
    section[:0] = [{"Overview": site.LIST}, *({paper: pages} for paper, pages in papers.items())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The gallery, from where `ntk-analysis figures` put it, a font of mathematics, and the pages of the claims."""
    package = find_spec("ziamath")
    assert package is not None
    assert package.origin is not None
    font = Path(package.origin).parent / "fonts" / FONT
    for place, text in site.pages().items():
        files.append(File.generated(config, place, content=text))
    for folder, path in [("fonts", font), *(("gallery", picture) for picture in sorted(GALLERY.glob("*.png")))]:
        files.append(File.generated(config, f"{folder}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Pages name the gallery's pictures as GitHub finds them; here as the site has them, each with a link to itself."""
    up = "../" * page.file.src_uri.count("/")
    return PICTURE.sub(rf"[\1({up}gallery/\2)]({up}gallery/\2)", markdown)


def on_page_content(content: str, page: Any, **others: Any) -> str:
    """Every formula as MathML."""

    def drawn(found: re.Match[str]) -> str:
        latex = html.unescape(found["latex"]).strip()
        block = found["tag"] == "div"
        maths = str(formula(latex, "block" if block else "inline"))
        if not maths.startswith("<math"):
            log.warning("%s: the converter does not know the formula %s", page.file.src_uri, latex)
        return f'<div class="formula">{maths}</div>' if block else maths

    return MATHS.sub(drawn, content)

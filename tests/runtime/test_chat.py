"""Rendered prompts against transformers' own `apply_chat_template`."""

import re

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from handlens_runtime.chat import Message, render
from handlens_runtime.errors import PromptError
from handlens_runtime.manifest import Chat

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDEFICS3 = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
TRICKS = """{# whitespace, filters and extensions that templates of the hub use #}
    {% set ns = namespace(count=0) %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set ns.count = ns.count + 1 %}
    {{ {'role': message.role, 'text': message.content} | tojson }}
    {%- if ns.count > 3 %}{% break %}{% endif %}
    {% generation %}[{{ message.content.strip() }}]{% endgeneration %}
{% endfor %}
{{ eos_token }}{{ bos_token or 'no bos' }}"""
CONVERSATIONS = [
    [Message("user", "What is the capital of France?")],
    [Message("system", " Be brief. "), Message("user", "Hi <b>&\"'</b> é 日本 🦜"), Message("assistant", "Hello\n")],
    [Message("user", f"turn {i}") if i % 2 == 0 else Message("assistant", f"answer {i}") for i in range(5)],
]


def chat_of(template, bos="<s>", eos="</s>"):
    return Chat(template=template, bos_token=bos, eos_token=eos, stop_ids=(0,))


def by_transformers(chat, messages, answer, parts=False):
    names = {"bos_token": chat.bos_token, "eos_token": chat.eos_token}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), **{name: token for name, token in names.items() if token}
    )
    conversation = [{"role": message.role, "content": message.text} for message in messages]
    if parts:
        for entry, message in zip(conversation, messages, strict=True):
            pictures = [{"type": "image"}] * len(message.images)
            entry["content"] = [*pictures, {"type": "text", "text": message.text}]
    return tokenizer.apply_chat_template(
        conversation, chat_template=chat.template, tokenize=False, add_generation_prompt=answer
    )


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("template", [SMOLLM2, LLAMA3, TRICKS])
def test_text_templates_render_as_in_transformers(template, messages, answer):
    chat = chat_of(template)
    expected = by_transformers(chat, messages, answer)
    assert render(chat, messages, parts=False, answer=answer) == expected
    assert messages[-1].role in expected


@pytest.mark.parametrize("answer", [True, False])
def test_idefics3_template_renders_pictures_as_in_transformers(answer):
    messages = [
        Message("user", "Which is larger?", images=("a.jpg", "b.jpg")),
        Message("assistant", "The second."),
        Message("user", "And now without a picture?"),
    ]
    chat = chat_of(IDEFICS3)
    rendered = render(chat, messages, parts=True, answer=answer)
    assert rendered == by_transformers(chat, messages, answer, parts=True)
    assert rendered.startswith("<|im_start|>User:<image><image>Which is larger?<end_of_utterance>\n")


def test_tokens_that_a_checkpoint_lacks_are_undefined_as_in_transformers():
    chat = chat_of(TRICKS, bos=None, eos=None)
    rendered = render(chat, CONVERSATIONS[0], parts=False, answer=True)
    assert rendered == by_transformers(chat, CONVERSATIONS[0], True)
    assert rendered.endswith("no bos")


def test_picture_alone_and_empty_text_alone_still_have_a_part():
    chat = chat_of(IDEFICS3)
    picture = render(chat, [Message("user", images=("a.jpg",))], parts=True, answer=False)
    assert picture == "<|im_start|>User:<image><end_of_utterance>\n"
    assert render(chat, [Message("user")], parts=True, answer=False) == "<|im_start|>User: <end_of_utterance>\n"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "has no element 5"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'x'.format }}{{ messages.__init__.__globals__ }}", "unsafe"),
    ],
)
def test_template_that_refuses_or_misbehaves_gives_one_sentence(template, words):
    with pytest.raises(PromptError, match=f"chat template refuses these messages.*{re.escape(words)}"):
        render(chat_of(template), CONVERSATIONS[0], parts=False, answer=True)

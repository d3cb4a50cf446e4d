"""Chat templates of the small vision models: each writes images as its family's models do."""

from __future__ import annotations

from tests.models import CHAT_TEMPLATE

_QWEN_CONTENT = r"""
{%- macro text(content) %}
    {%- if content is string %}{{- content }}
    {%- else %}
        {%- for part in content or [] %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' or 'video' in part %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}{{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
""".strip()

QWEN_TEMPLATE = _QWEN_CONTENT + CHAT_TEMPLATE.replace(
    "messages[0].content", "text(messages[0].content)"
).replace("message.content", "text(message.content)")

GEMMA_TEMPLATE = r"""
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content if messages[0].content is string
        else messages[0].content[0].text %}
    {%- set prefix, turns = first + '\n\n', messages[1:] %}
{%- else %}
    {%- set prefix, turns = '', messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message.content is string %}{{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}{{- '<start_of_image>' }}
            {%- elif part.type == 'text' %}{{- part.text | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}
""".strip()

IDEFICS_TEMPLATE = r"""
{{- '<|im_start|>' }}
{%- for message in messages %}
    {{- message.role | capitalize }}
    {%- if message.content is string %}{{- ': ' + message.content }}
    {%- else %}
        {{- ':' if message.content[0].type == 'image' else ': ' }}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}{{- '<image>' }}
            {%- elif part.type == 'text' %}{{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_utterance>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}
""".strip()

// Images and PDFs that go with a message: chosen, pasted or dropped.

import { $, announce, el } from "./dom.js";

const TAKEN = /^(image\/(png|jpeg|webp|gif|bmp)|application\/pdf)$/;

let files = []; // {name, type, url}

export const attached = () => files;

/** `allowed()`: whether the chosen model sees. `refuse(text)`: says why a file is not taken. */
export function setUpAttachments(allowed, refuse) {
  const composer = $("composer");
  const take = (list) => {
    if (list.length === 0) return;
    if (!allowed()) refuse("This model reads text only. Choose one with vision to send images.");
    else for (const file of list) read(file, refuse);
  };
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    take([...$("files").files]);
    $("files").value = "";
  });
  composer.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    take([...event.clipboardData.files]);
  });
  const chat = $("chat");
  chat.addEventListener("dragover", (event) => {
    event.preventDefault();
    composer.classList.add("over");
  });
  chat.addEventListener("dragleave", () => composer.classList.remove("over"));
  chat.addEventListener("drop", (event) => {
    event.preventDefault();
    composer.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
}

export function setAttached(list) {
  files = list;
  show();
}

/** How a file looks: an image as itself, a PDF by its name. */
export function picture(file) {
  return file.type === "application/pdf"
    ? el("span", { class: "chip" }, file.name)
    : el("img", { src: file.url, alt: file.name });
}

function read(file, refuse) {
  if (!TAKEN.test(file.type)) {
    refuse(`${file.name} is neither an image (PNG, JPEG, WebP, GIF, BMP) nor a PDF.`);
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("error", () => refuse(`${file.name} cannot be read.`));
  reader.addEventListener("load", () => {
    files = [...files, { name: file.name, type: file.type, url: reader.result }];
    show();
    announce(`${file.name} attached`);
  });
  reader.readAsDataURL(file);
}

function show() {
  const place = $("attachments");
  place.hidden = files.length === 0;
  place.replaceChildren(
    ...files.map((file) =>
      el(
        "li",
        {},
        ...(file.type === "application/pdf" ? [] : [el("img", { src: file.url, alt: "" })]),
        el("span", {}, file.name),
        el(
          "button",
          {
            type: "button",
            class: "small quiet",
            "aria-label": `Remove ${file.name}`,
            onclick: () => {
              setAttached(files.filter((other) => other !== file));
              $("message").focus();
            },
          },
          "Remove",
        ),
      ),
    ),
  );
}

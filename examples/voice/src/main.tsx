import { holdfast } from "@holdfast/client";
import { HoldfastProvider } from "@holdfast/react";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Page } from "./page.tsx";
import { post } from "./post.ts";
import "./style.css";

const hf = holdfast({ url: location.origin, session: (signal) => post("/api/session", {}, signal) });
const id = new URLSearchParams(location.search).get("c") ?? "auth-refactor";
await post("/api/conversation", { id });

const root = document.getElementById("root");
if (root)
  createRoot(root).render(
    <StrictMode>
      <HoldfastProvider client={hf}>
        <Page id={id} />
      </HoldfastProvider>
    </StrictMode>,
  );
